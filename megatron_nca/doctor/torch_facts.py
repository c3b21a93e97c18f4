"""What torch says of itself, as one line of JSON; run as a program, because importing torch may crash."""

import json

import torch


def facts() -> dict:
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())] if cuda else []
    return {
        "cuda_build": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        "gpus": [{"name": g.name, "memory": g.total_memory, "capability": [g.major, g.minor]} for g in gpus],
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
