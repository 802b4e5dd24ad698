"""Every notebook with a Gemma on eight simulated devices, where Kaggle and Colab would run it.

The second column of docs/rehearsal.md; `test_notebooks.py` runs the first. Knows nothing of what
the notebooks do: one that runs to its end, its own checks included, is well.
"""

import os
import sys

import jupytext
import place as places
import pytest
import rehearse
import stand_in

# Notebooks that go on with what another has left run in one session, after it.
AFTER = {"06_aha_traces": "05_train"}
ALONE = [(name,) for name in rehearse.NOTEBOOKS if name not in AFTER and name != "05_train"]
JOURNEYS = [("05_train", *[name for name in rehearse.NOTEBOOKS if name in AFTER]), *ALONE]
MEMORY = 8 * 2**30  # bytes, of the kernel's process

WHERE_AM_I = """
import os, pathlib
print(os.getcwd())
pathlib.Path("mine").write_text("mine")
data = pathlib.Path({data!r})
print(sorted(path.name for path in data.iterdir()))
try:
    (data / "theirs").write_text("mine")
except OSError as error:
    print(type(error).__name__)
"""

both_ways = pytest.mark.parametrize("real", [True, False], ids=["mounted", "exchanged"])


def made(site, folder, real):
    if real and not places.has_namespaces():
        pytest.skip("this machine lets nobody mount")
    return places.make(site, folder, real=real)


@both_ways
@pytest.mark.parametrize("site", ["kaggle", "colab"])
def test_a_place_is_like_the_site(site, real, tmp_path):
    """The folder of the notebook can be written; Kaggle's input cannot, by root neither."""
    place = made(site, tmp_path, real)
    program = place.text(WHERE_AM_I.format(data=place.inside(place.input)))
    done = place.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.stderr
    where, found, *refused = done.stdout.splitlines()
    if real:
        assert where == {"kaggle": "/kaggle/working", "colab": "/content"}[site]
    assert found == {"kaggle": "['aha']", "colab": "['aha.zip']"}[site]
    assert (place.working / "mine").read_text() == "mine"
    if site == "kaggle" and (real or os.getuid()):
        assert refused in (["OSError"], ["PermissionError"])
        assert not (place.input / "theirs").exists()


def test_the_text_names_the_folders_that_are_there(tmp_path):
    place = places.Place("kaggle", tmp_path, real=False)
    cell = place.text('pathlib.Path("/kaggle/input"), "/content/drive/MyDrive"')
    site = f"{tmp_path}/site"
    assert cell == f'pathlib.Path("{site}/kaggle/input"), "{site}/content/drive/MyDrive"'


def test_the_zip_is_the_readmes(tmp_path):
    """Without what .gitattributes leaves out, and without what Python leaves behind."""
    places.shutil.unpack_archive(places.pack(tmp_path / "aha.zip"), tmp_path / "unpacked")
    root = tmp_path / "unpacked/aha"
    here = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert here >= {"aha_lib/loop.py", "notebooks/05_train.ipynb", "pyproject.toml", "LICENSE"}
    assert not [name for name in here if "__pycache__" in name or "adapters.safetensors" in name]


def test_parameters_are_changed_as_a_reader_does():
    text = '# %% tags=["parameters"]\npreset = "tiny"\noverrides = {\n}  # none\nfolder = preset\n'
    notebook = jupytext.reads(text, fmt="py:percent")
    changed = rehearse.set_parameters(notebook, {"preset": "gemma3-1b", "chip": "v5e-8"})
    assert changed == {"preset": "gemma3-1b"}
    assert notebook.cells[0].source.startswith("preset = 'gemma3-1b'\noverrides = {\n}")
    changed = rehearse.set_parameters(notebook, {"overrides": {"steps": 2}})
    expected = "preset = 'gemma3-1b'\noverrides = {'steps': 2}\nfolder = preset"
    assert notebook.cells[0].source == expected


@pytest.mark.slow
@both_ways
def test_a_notebook_that_fails_is_told(real, tmp_path, monkeypatch):
    """The cell, its error, and what was seen of the kernel until then."""
    cells = [
        '# %% tags=["parameters"]\npreset = "tiny"',
        "# %%\nimport jax\nones = jax.numpy.ones((2**18, 8))\nimport time; time.sleep(3)",
        '# %%\nraise ValueError(f"{preset} is too small")',
        "# %%\n1 + 1",
    ]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/broken.py").write_text("\n\n".join(cells))
    place = made("kaggle", tmp_path / "place", real)
    place.environment["IPYTHONDIR"] = str(place.folder / "ipython")
    monkeypatch.setattr(rehearse, "ROOT", tmp_path)
    went = rehearse.rehearse("broken", rehearse.Rehearsal(preset="big"), place)
    assert (went["runs"], went["cell"], went["of"]) == (False, 3, 4)
    assert went["error"].startswith("ValueError: big is too small")
    assert went["devices"]["arrays"]["0"] == 8 * 2**20
    assert went["host"] > 2**26
    assert rehearse.in_words(went).startswith("broken: fails in code cell 3 of 4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    stand_in.write(folder)
    return folder


@pytest.fixture(scope="module")
def session(model, tmp_path_factory):
    """Runs notebooks in one place of a site, with its servers there."""
    open_sites = []

    def start(how):
        site = rehearse.serve(model).__enter__()
        open_sites.append(site)
        place = rehearse.prepare(how, tmp_path_factory.mktemp(how.site), site)
        return place, site

    yield start
    for site in open_sites:
        site.__exit__()


def check(went, place):
    assert went["runs"], rehearse.in_words(went) + "\n" + went["error"]
    brought = place.input if place.site == "kaggle" else place.working  # unpacked from the zip
    assert went["package"].startswith(f"{place.inside(brought)}/aha")
    assert went["host"] < MEMORY
    print(rehearse.in_words(went))


@pytest.mark.slow
@pytest.mark.parametrize("names", JOURNEYS, ids="+".join)
def test_on_kaggle(names, session):
    """Eight devices, the weights attached by kagglehub in Flax's layout."""
    place, site = session(rehearse.Rehearsal("kaggle"))
    for name in names:
        check(rehearse.rehearse(name, rehearse.Rehearsal("kaggle"), place), place)
    if "05_train" in names:
        assert [line for line in site.asked if line.endswith("AttachDatasourceUsingJwtRequest")]


@pytest.mark.slow
def test_on_colab(session):
    """The zip on Drive, the weights of Hugging Face."""
    how = rehearse.Rehearsal("colab")
    place, site = session(how)
    source = {"model": "hf:google/gemma-3-270m"}
    for name in ("00_setup_tpu", "05_train"):
        values = {"overrides": rehearse.FEW | source}
        check(rehearse.rehearse(name, how, place, values), place)
    assert [line for line in site.asked if "/resolve/" in line]


def test_the_page_shows_the_record():
    """`python tests/rehearsal/rehearse.py --table` writes it."""
    page = rehearse.PAGE.read_text()
    assert page == rehearse.with_table(page, rehearse.recorded())
