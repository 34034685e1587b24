"""examples/finetune.ipynb, executed from its first cell to its last in an empty folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures import published

NOTEBOOK = Path(__file__).parents[1] / "examples" / "finetune.ipynb"
SETTINGS = "MODEL, LEARNING_RATE, STEPS, BATCH_TOKENS, BASE = {model!r}, 3e-2, 500, 150, None"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = code_cells(json.loads(NOTEBOOK.read_text()))
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {}
    exec("".join(cells[0]["source"]), names)
    assert set(names) >= {"MODEL", "LEARNING_RATE", "STEPS", "BATCH_TOKENS", "BASE"}
    assert names["MODEL"] == "microsoft/Phi-4-multimodal-instruct"


@pytest.mark.long
def test_the_notebook_runs_in_an_empty_folder(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    model = published.write(tmp_path / "tiny" / "model", "native", torch.float32)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code_cells(notebook)[0]["source"] = SETTINGS.format(model=str(model))
    folder = tmp_path / "empty"
    folder.mkdir()
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()

    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    shapes = sum("image/png" in output.get("data", {}) for output in outputs)
    assert shapes == 4, "three pictures and the plot"
    records = (folder / "first/run/metrics.jsonl").read_text().splitlines()
    first, *_, last = [json.loads(record)["loss"] for record in records]
    assert last < 0.1 * first
    results = [o["data"]["text/plain"] for o in outputs if o["output_type"] == "execute_result"]
    *_, served, files = results
    assert served == "'a zib'" and "model.safetensors" in files
