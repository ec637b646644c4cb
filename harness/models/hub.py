"""What is wrong with the Hugging Face hub, and what can be done about it. Torch-free."""

from __future__ import annotations


def hub_trouble(error: Exception, hub_id: str) -> str:
    """One line on a failed request, with what the user can do.

    Args:
        error: What huggingface_hub raised.
        hub_id: The repository that was asked for.
    """
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled

    if isinstance(error, GatedRepoError):
        return (
            f"{hub_id} is gated: ask for access on https://huggingface.co/{hub_id}, and when it is "
            "given log in with `hf auth login`"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return (
            f"the hub refuses {hub_id} ({status}): log in with `hf auth login` if you may read it"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub is switched off (HF_HUB_OFFLINE)"
    return "the hub cannot be reached" if status is None else f"the hub is down ({status})"
