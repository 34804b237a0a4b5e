"Every value comes from settings.ini; edit it there."
from configparser import ConfigParser
from pathlib import Path
from shlex import split
from setuptools import Distribution, find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
s = config["DEFAULT"]
lib, status = s["lib_name"], {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}[s["status"]]
extras = {k.removesuffix("_requirements").replace("_", "-"): v.split() for k, v in s.items() if k.endswith("_requirements")}

class Dist(Distribution):
    "An editable install asks has_data before it copies data_files; without it the kernelspec is left out."
    def has_data(self): return self.has_data_files()

def files(folder, pattern="*"): return [str(p) for p in sorted(Path(folder).glob(pattern)) if p.is_file()]

setup(
    distclass=Dist,
    version=s["version"], description=s["description"], keywords=s["keywords"].split(),
    author=s["author"], author_email=s["author_email"], license="Apache-2.0",
    classifiers=[f"Development Status :: {status}", f"Intended Audience :: {s['audience']}", "Framework :: Jupyter"],
    project_urls={"Repository": s["git_url"], "Documentation": s["doc_host"] + s["doc_baseurl"]},
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else s["description"],
    long_description_content_type="text/markdown",
    packages=find_packages(include=[s["lib_path"], s["lib_path"] + ".*"]), include_package_data=True,
    install_requires=s["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": split(s["console_scripts"]), "nbdev": [f"{lib}={s['lib_path']}._modidx:d"],
                  "nbconvert.exporters": [f"{lib}={lib}.report:ReportExporter"],
                  "papermill.engine": [f"{lib}={lib}.papermill_engine:HonestEngine"]},
    data_files=[(f"share/jupyter/kernels/{lib}", files("mathrepro/share/kernelspec")),
                (f"share/jupyter/nbconvert/templates/{lib}", files("mathrepro/share/template")),
                (f"share/{lib}/papers", files("nbs/papers", "*.ipynb")),
                *[(f"share/{lib}/params/{d.name}", files(d)) for d in sorted(Path("params").glob("*")) if d.is_dir()]],
)
