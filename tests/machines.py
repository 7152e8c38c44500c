"""Environments in which numpy computes as on another processor."""

from __future__ import annotations

from numpy._core._multiarray_umath import __cpu_dispatch__  # type: ignore[import-not-found]

# Kernels of the BLAS beside numpy: with AVX2, with AVX-512, with SSE3. A processor that lacks one
# ends a process that multiplies matrices with it, which nothing that writes a file may do. And
# numpy without any of the vector code that it would choose.
MACHINES: dict[str, dict[str, str]] = {
    "as it is": {},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "no vectors": {
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__),
    },
}
