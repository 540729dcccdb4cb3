"""vLLM answering prompts of token ids, for `benchmarks.generation`: runs in the Python that vLLM is installed in.

    python vllm_child.py MODEL CONTEXT ROWS

One JSON object per line: `{"prompts": [[ids]], "max_new_tokens", "min_new_tokens", "end_ids"}` comes in on standard input,
`{"seconds", "cpu_seconds", "outputs": [[ids]]}` goes out. What vLLM itself prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Load the model, say so, answer jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # In this process, so that its CPU time can be read, and on the threads it is given.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import torch
    from vllm import LLM, SamplingParams  # pyright: ignore

    threads = int(os.environ["OMP_NUM_THREADS"])
    llm = LLM(
        sys.argv[1],
        dtype="float32",
        max_model_len=int(sys.argv[2]),
        max_num_seqs=int(sys.argv[3]),
        enable_prefix_caching=True,
    )
    torch.set_num_threads(threads)
    print(json.dumps({"threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        sampling = SamplingParams(
            temperature=0,
            max_tokens=job["max_new_tokens"],
            min_tokens=job["min_new_tokens"],
            stop_token_ids=job["end_ids"],
            detokenize=False,
        )
        llm.reset_prefix_cache()  # a new call shares nothing with the last round
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
        start, cpu_start = time.perf_counter(), time.process_time()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "outputs": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()
