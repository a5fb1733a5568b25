// Which build of the fast kernels runs on this machine.
#include "select_cpu.h"

#include <cstdlib>
#include <cstring>

namespace {

struct Choice {
  const char* name;
  XregKernels kernels;
};

bool supported(const char* name) {
  if (!std::strcmp(name, "base") || !std::strcmp(name, "scalar")) return true;
#ifdef XREG_X86
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
#endif
  return false;
}

#define KERNELS_OF(isa)                                                                                      \
  {#isa,                                                                                                     \
   {xreg_project_##isa, xreg_splat_##isa, xreg_splat_backward_##isa, xreg_voxelize_##isa, xreg_voxelize_backward_##isa}}

const Choice kChoices[] = {  // best first
#ifdef XREG_X86
    KERNELS_OF(avx512),
    KERNELS_OF(avx2),
#endif
    KERNELS_OF(base),
    KERNELS_OF(scalar),
};

const Choice* find(const char* name) {
  for (const Choice& c : kChoices)
    if (!std::strcmp(c.name, name) && supported(c.name)) return &c;
  return nullptr;
}

const Choice* best() {
  if (const char* asked = std::getenv("XREG_ISA"))
    if (const Choice* c = find(asked)) return c;
  for (const Choice& c : kChoices)
    if (supported(c.name)) return &c;
  return &kChoices[sizeof(kChoices) / sizeof(kChoices[0]) - 1];
}

const Choice*& chosen() {
  static const Choice* choice = best();
  return choice;
}

}  // namespace

extern "C" const char* xreg_isa(void) { return chosen()->name; }

extern "C" int xreg_set_isa(const char* name) {
  const Choice* c = find(name);
  if (c) chosen() = c;
  return c != nullptr;
}

const XregKernels& xreg_best() { return chosen()->kernels; }
const XregKernels& xreg_scalar() { return find("scalar")->kernels; }
