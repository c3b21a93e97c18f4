"""What a training takes, by arithmetic alone: parameters, floating-point operations, memory of a device.

Pure functions of settings; nothing here imports torch, NumPy or Megatron. Tests hold the results against what is built.
"""
