// The fast host functions of cuda/splat_lanes.cuh, over arrays; test_splat_lanes.py compares them with numpy's.
#include "splat_lanes.cuh"

using namespace xreg;

extern "C" void fast_exp2_minus(const float* x, float* y, int n) {
  for (int i = 0; i + kFastLanes <= n; i += kFastLanes) store(y + i, exp2_above(-load<FloatLanes>(x + i), -125.0f));
}
extern "C" void fast_inverse_sqrt(const float* x, float* y, int n) {
  for (int i = 0; i + kFastLanes <= n; i += kFastLanes) store(y + i, inverse_sqrt(load<FloatLanes>(x + i)));
}
extern "C" void fast_inverse_sqrt_near_one(const float* e, float* y, int n) {
  for (int i = 0; i + kFastLanes <= n; i += kFastLanes) store(y + i, inverse_sqrt_near_one(load<FloatLanes>(e + i)));
}
extern "C" double slight() { return kSlight; }
extern "C" int fast_lanes() { return kFastLanes; }
extern "C" double fast_sum(const float* x) { return sum_of(load<FloatLanes>(x)); }
