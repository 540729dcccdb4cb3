"""Target hub: the student with its card in a repository on the Hugging Face hub, private unless you say otherwise.

The token is the one of `hf auth login`; the lab neither reads nor writes it.

    distill export runs/first --to hub --repo me/my-student --dry-run
"""

from __future__ import annotations

import re
from pathlib import Path

from distill_lab import activity
from distill_lab.errors import UserError
from distill_lab.export import Exported, Job, Options, safetensors
from distill_lab.formatting import bytes_text

LEFT_OUT = ("export.json", "check/*")
"""Records of the check: the card says what is in them."""


def check(options: Options) -> None:
    """Raise UserError for a name that cannot be a repository's."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", options.repo):
        raise UserError(f"--repo {options.repo or '(not given)'}: give the repository as owner/name")


def export(job: Job) -> list[Exported]:
    """Write what will be uploaded: the model as the target safetensors does."""
    return safetensors.export(job)


def publish(out: Path, options: Options, *, overwrite: bool) -> list[str]:
    """Upload the files in `out`; returns what was done. With `dry_run`, what would be done, and nothing is sent.

    Raises UserError if the repository exists (unless `overwrite`), or if the hub refuses.
    """
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and not _left_out(path.relative_to(out))]
    lines = [f"{path.relative_to(out)}  {bytes_text(path.stat().st_size)}" for path in files]
    total = bytes_text(sum(path.stat().st_size for path in files))
    seen = "private" if options.private else "public"
    if options.dry_run:
        return [
            *lines,
            f"{len(files)} files, {total}, would go to the {seen} repository {options.repo}; nothing was sent",
        ]
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    api = HfApi()
    try:
        with activity.doing(f"uploading {total} to {options.repo}"):
            if not overwrite and api.repo_exists(options.repo):
                raise UserError(
                    f"{options.repo} exists already; choose another --repo, or add --overwrite to upload into it"
                )
            api.create_repo(options.repo, private=options.private, exist_ok=True)
            url = api.upload_folder(
                repo_id=options.repo, folder_path=out, ignore_patterns=list(LEFT_OUT), commit_message="Upload student"
            )
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from None
    except LocalTokenNotFoundError:
        raise UserError(f"{options.repo}: not logged in to the hub; run `hf auth login`") from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{options.repo}: the hub refused ({reason}); log in with `hf auth login`") from None
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{options.repo}: the hub does not answer ({error}); check the network, then run it again"
        ) from None
    return [*lines, f"uploaded to the {seen} repository {url}"]


def _left_out(path: Path) -> bool:
    return any(path.match(pattern) for pattern in LEFT_OUT)
