"""How one of several processes leaves its group without harm to the others."""

import torch


def leave_together() -> None:
    """Wait for the others, then leave; do nothing in a process that is alone.

    A process that leaves while another still talks to it was seen to abort in gloo's threads.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
