"""Build the docs: `python docs/build.py` writes the site to `site/`, which any browser opens from disk.

    python docs/build.py             # run notebooks and pages, write the reference, build strictly
    python docs/build.py --quick     # the same without running anything
    python docs/build.py --outputs   # write what the blocks of the pages print now into the pages, and stop

Needs `pip install '.[docs]'`. Everything that is generated goes to `build/docs`, and MkDocs turns that into the site.
"""

import argparse
import sys
import time
from pathlib import Path

from building.blocks import with_outputs
from building.site import run_mkdocs, write_mathml
from building.sources import collect

DOCS = Path(__file__).parent
ROOT = DOCS.parent


def main() -> int:
    """Build the docs, and return MkDocs' exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="do not run notebooks and pages")
    parser.add_argument("--outputs", action="store_true", help="write what blocks print into the pages, and stop")
    options = parser.parse_args()
    if options.outputs:
        for page in sorted(DOCS.rglob("*.md")):
            page.write_text(with_outputs(page), encoding="utf-8")
        return 0
    start = time.perf_counter()
    collect(ROOT / "build" / "docs", runs=not options.quick)
    print(f"pages written in {time.perf_counter() - start:.1f} s", flush=True)
    code = run_mkdocs(ROOT)
    if code == 0:
        n_formulas = write_mathml(ROOT / "site")
        print(f"site/index.html with {n_formulas} formulas in {time.perf_counter() - start:.1f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
