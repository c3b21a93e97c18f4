"""Peak rates and memory of accelerators, from their makers' data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """`tflops` and `tflops_fp32`: dense peak rates in 10^12 a second, of bf16 and fp16, and of fp32 without TF32;
    None where there is no rated one. `memory_gb` in 10^9 bytes, which is a little less than what is there."""

    name: str
    tflops: float | None
    tflops_fp32: float | None
    memory_gb: float | None

    def peak_flops(self, precision: str) -> float | None:
        """Operations a second."""
        rate = self.tflops_fp32 if precision == "fp32" else self.tflops
        return None if rate is None else rate * 1e12

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory_gb is None else int(self.memory_gb * 1e9)


# NVIDIA's data sheets of the A100 80GB SXM, H100 SXM, H200 SXM and HGX B200 (an eighth of the board), without sparsity.
DEVICES = {
    "a100": Device("NVIDIA A100 80GB SXM", 312.0, 19.5, 80.0),
    "h100": Device("NVIDIA H100 SXM", 989.4, 66.9, 80.0),
    "h200": Device("NVIDIA H200 SXM", 989.4, 66.9, 141.0),
    "b200": Device("NVIDIA B200 (HGX)", 2250.0, 75.0, 180.0),
    "cpu": Device("CPU", None, None, None),
}
DRIVER_NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
"""What the driver calls those whose rates are above. Others of a family, such as PCIe and NVL cards, are slower."""


def peak_of(driver_name: str, precision: str, fp8: bool = False) -> float | None:
    """Peak FLOPs a second of the device that the driver calls so; None if it is not known, as those of fp8 are not."""
    key = DRIVER_NAMES.get(driver_name)
    return None if key is None or fp8 else DEVICES[key].peak_flops(precision)
