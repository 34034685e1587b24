"""The native kernels, which pyproject.toml has no settled way to name; all else stands there.

They are optional: where there is no C++ compiler the package installs without them (polyphi/kernels says so). Nothing
of Python is in them, and ctypes loads them, so that one library, and one wheel, serves every Python of a platform.
"""

from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class Library(build_ext):
    """Named without a Python's version; its sources are compiled in parallel."""

    def build_extensions(self) -> None:
        compile_sources = self.compiler.compile

        def compile_in_parallel(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor() as pool:
                objects = pool.map(lambda source: compile_sources([source], **options), sources)
                return [path for paths in objects for path in paths]

        self.compiler.compile = compile_in_parallel
        super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # an extension module's would be demanded


class Wheel(bdist_wheel):
    """For any Python 3 of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": Library, "bdist_wheel": Wheel},
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
    ],
)
