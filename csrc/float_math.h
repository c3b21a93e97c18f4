// log, exp and the inverse error function in float32 from correctly rounded operations only (+ - * / sqrt fma), in one
// fixed order, so that every compiler, vector width and device gives the same bits. libm's and CUDA's do not agree.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "host_device.h"

namespace nca {

NCA_FN float fma32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

NCA_FN uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

NCA_FN float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Natural logarithm of a positive normal number. x = 2^e m, m in [sqrt(1/2), sqrt(2)); log m = 2 artanh((m-1)/(m+1)).
NCA_FN float log32(float x) {
  const uint32_t shifted = bits_of(x) - 0x3F3504F3u;  // bits of sqrt(1/2)
  const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
  const float m = float_of((shifted & 0x007FFFFFu) + 0x3F3504F3u);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float q = s * s;
  float series = fma32(q, 2.0f / 9.0f, 2.0f / 7.0f);
  series = fma32(series, q, 2.0f / 5.0f);
  series = fma32(series, q, 2.0f / 3.0f);
  series = fma32(series, q, 2.0f);
  return fma32(static_cast<float>(exponent), 0.693147182464599609375f, s * series);
}

// e^x for -80 <= x <= 80. x = k ln 2 + r, |r| <= ln(2)/2; e^r by its Taylor series to degree 7.
NCA_FN float exp32(float x) {
  const float scaled = x * 1.44269502162933349609375f;
  const int32_t k = static_cast<int32_t>(scaled + (scaled < 0.0f ? -0.5f : 0.5f));
  const float r = fma32(static_cast<float>(k), -0.693147182464599609375f, x);
  float series = fma32(r, 1.0f / 5040.0f, 1.0f / 720.0f);
  series = fma32(series, r, 1.0f / 120.0f);
  series = fma32(series, r, 1.0f / 24.0f);
  series = fma32(series, r, 1.0f / 6.0f);
  series = fma32(series, r, 0.5f);
  series = fma32(series, r, 1.0f);
  series = fma32(series, r, 1.0f);
  return series * float_of(static_cast<uint32_t>(k + 127) << 23);
}

// Inverse error function, |u| < 1 - 2^-24: M. Giles, "Approximating the erfinv function", GPU Computing Gems (2012),
// single-precision polynomials. The centre covers |u| < 0.9966.
NCA_FN float erfinv_centre(float u, float w) {
  w = w - 2.5f;
  float p = 2.81022636e-08f;
  p = fma32(p, w, 3.43273939e-07f);
  p = fma32(p, w, -3.5233877e-06f);
  p = fma32(p, w, -4.39150654e-06f);
  p = fma32(p, w, 0.00021858087f);
  p = fma32(p, w, -0.00125372503f);
  p = fma32(p, w, -0.00417768164f);
  p = fma32(p, w, 0.246640727f);
  p = fma32(p, w, 1.50140941f);
  return p * u;
}

NCA_FN float erfinv_tail(float u, float w) {
  w = sqrtf(w) - 3.0f;
  float p = -0.000200214257f;
  p = fma32(p, w, 0.000100950558f);
  p = fma32(p, w, 0.00134934322f);
  p = fma32(p, w, -0.00367342844f);
  p = fma32(p, w, 0.00573950773f);
  p = fma32(p, w, -0.0076224613f);
  p = fma32(p, w, 0.00943887047f);
  p = fma32(p, w, 1.00167406f);
  p = fma32(p, w, 2.83297682f);
  return p * u;
}

NCA_FN float minus_log_one_minus_square(float u) { return -log32(fma32(-u, u, 1.0f)); }

// N(0, 1) from a symmetric uniform.
NCA_FN float standard_normal(float u) {
  const float w = minus_log_one_minus_square(u);
  return 1.41421353816986083984375f * (w < 5.0f ? erfinv_centre(u, w) : erfinv_tail(u, w));
}

// N(0, 1) truncated to [-2, 2], unscaled, from a symmetric uniform: erf(2 / sqrt 2) = 0.9545 keeps to the centre.
NCA_FN float truncated_normal(float u) {
  u = u * 0.954499721527099609375f;
  return 1.41421353816986083984375f * erfinv_centre(u, minus_log_one_minus_square(u));
}

}  // namespace nca
