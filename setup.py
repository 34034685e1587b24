"""The native kernels, which pyproject.toml has no settled way to name; all else stands there.

They are optional: where there is no C++ compiler the package installs without them (polyphi/kernels says so).
"""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "polyphi.kernels._native",
            sorted(glob("polyphi/kernels/*.cpp")),
            depends=sorted(glob("polyphi/kernels/*.h")),
            language="c++",
            extra_compile_args=["-O3", "-ffp-contract=off", "-std=c++17", "-pthread", "-g0"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
