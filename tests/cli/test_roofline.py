"""`suite roofline` with a model, a method and a machine: offline, and without weights."""

from __future__ import annotations

import csv
import io
import json

import pytest

from suite.cli import run

LLAMA = ("roofline", "--model", "llama-3-8b", "--hardware", "h100_sxm")


def answer(capsys, *arguments: str) -> str:
    assert run([*LLAMA, *arguments]) == 0
    return capsys.readouterr().out


def document(capsys, *arguments: str) -> dict:
    return json.loads(answer(capsys, *arguments, "--json"))


def complaint(capsys, *arguments: str) -> str:
    assert run([*LLAMA, *arguments]) == 2
    return capsys.readouterr().err


def test_the_question_of_the_issue(capsys) -> None:
    out = answer(capsys, "--method", "chunkllm", "--seqlen", "131072", "--generate", "100", "--price", "2.5")
    assert "decode of llama-3-8b under chunkllm, batch 1, 131072 tokens" in out
    for told in ("index_read", "tokens/s", "GB per device", "100 tokens behind the prompt", "a million tokens cost"):
        assert told in out
    assert "energy constants not available; rated power would be" in out


def test_a_method_reads_less_and_its_options_say_how_much(capsys) -> None:
    read = {}
    for label, more in {
        "dense": (),
        "half": ("--method", "chunkllm"),
        "tenth": ("--method", "chunkllm", "--set", "retention=0.1"),
        "colon": ("--method", "chunkllm:retention=0.1"),
    }.items():
        found = document(capsys, "--seqlen", "131072", *more)
        read[label] = next(
            row["kv_bytes"] for row in found["phases"]["decode"]["operators"] if row["operator"] == "attention"
        )
    assert read["half"] == pytest.approx(read["dense"] / 2)
    assert read["tenth"] == read["colon"] == pytest.approx(read["dense"] / 10)


def test_a_drafting_method_has_rounds(capsys) -> None:
    found = document(capsys, "--method", "draft_model:drafter=llama-3.2-1b,length=4", "--accepted", "3")
    assert set(found["phases"]) == {"prefill", "decode", "verify", "draft"}
    rounds = found["phases"]["verify"]["seconds"] + found["phases"]["draft"]["seconds"]
    assert found["step_ms"] == pytest.approx(1e3 * rounds)
    assert found["tokens_per_s"] == pytest.approx(3 / rounds)
    assert found["break_even_tokens_per_step"] == pytest.approx(rounds / found["phases"]["decode"]["seconds"])
    assert "a round pays when it gives more than" in answer(capsys, "--method", "ngram")


def test_a_sweep_is_a_table_a_file_and_a_document(capsys) -> None:
    axes = ("--batch", "1,8", "--seqlen", "1024,8192")
    assert "tokens per s" in answer(capsys, *axes)
    points = document(capsys, *axes)["points"]
    assert [(point["batch"], point["seqlen"]) for point in points] == [(1, 1024), (1, 8192), (8, 1024), (8, 8192)]
    rows = list(csv.DictReader(io.StringIO(answer(capsys, *axes, "--csv"))))
    assert [float(row["step_ms"]) for row in rows] == [point["step_ms"] for point in points]
    alone = document(capsys, "--batch", "8", "--seqlen", "8192")
    assert alone["step_ms"] == points[3]["step_ms"]
    operators = list(csv.DictReader(io.StringIO(answer(capsys, "--csv"))))
    assert {row["phase"] for row in operators} == {"prefill", "decode"}


def test_several_devices(capsys) -> None:
    one, eight = document(capsys), document(capsys, "--tensor", "8")
    assert eight["devices"] == 8
    assert eight["weights_gb"] == pytest.approx(one["weights_gb"] / 8, rel=1e-3)
    assert one["step_ms"] / 8 < eight["step_ms"] < one["step_ms"]
    names = {row["operator"] for row in eight["phases"]["decode"]["operators"]}
    assert names >= {"all_reduce", "all_gather"}


def test_own_hardware_with_energy(capsys, tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[mine]\ntitle = "Mine"\nsource = "D"\nbf16_tflops = 100\nmemory_gb_per_s = 500\nmemory_gb = 12\n'
        "idle_w = 50\nflop_pj = 1\nbyte_pj = 20\n"
    )
    arguments = ["roofline", "--model", "llama-3-8b", "--hardware", str(path)]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    decode = found["phases"]["decode"]["operators"]
    flops, moved = (sum(row[field] for row in decode) for field in ("flops", "bytes"))
    assert found["joules_per_token"] == pytest.approx(0.05 * found["step_ms"] + 1e-12 * flops + 20e-12 * moved)
    assert found["fits"] is False
    assert run(arguments) == 0
    assert "J per generated token" in (out := capsys.readouterr().out)
    assert "does not fit" in out


def test_a_config_file_needs_no_weights(capsys, tmp_path) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    preset = document(capsys)
    for place in (tmp_path, tmp_path / "config.json"):
        assert run(["roofline", "--model", str(place), "--hardware", "h100-sxm", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["phases"] == preset["phases"]


def test_presets_load_nothing(capsys, monkeypatch) -> None:
    import suite.models.loaders

    monkeypatch.setattr(suite.models.loaders, "load_model", lambda *args: pytest.fail("weights were loaded"))
    assert document(capsys, "--model", "deepseek-v3")["weights_gb"] == pytest.approx(1342, rel=1e-3)


def test_llm_viewer_beside_the_corrected_model(capsys) -> None:
    """Case A4 of the card: its decode time and its error."""
    arguments = ("--compat", "llm-viewer-2024", "--batch", "64", "--bits", "8/8/8")
    rows = document(capsys, *arguments)["rows"]
    total = next(row for row in rows if (row["stage"], row["quantity"]) == ("decode", "time"))
    assert total["compat"] == pytest.approx(25.07473)
    assert total["error"] == pytest.approx(total["compat"] / total["corrected"] - 1)
    assert 2 < total["error"] < 2.6
    out = answer(capsys, *arguments)
    assert "llm-viewer-2024 against the corrected model" in out
    assert "corrected" in out
    parts = [row for row in rows if row["stage"] == "decode" and row["unit"] == "ms" and row["quantity"] != "time"]
    for column in ("compat", "corrected"):
        assert sum(row[column] for row in parts) == pytest.approx(total[column])


def test_an_answer_as_llm_viewer_adds_it_up(capsys) -> None:
    rows = document(capsys, "--compat", "llm-viewer-2026", "--generate", "1")["rows"]
    prefill, decode, library, page = (
        row["compat"] for row in rows if row["quantity"] == "time" or row["stage"] == "chat"
    )
    assert library == pytest.approx((prefill + decode) / 1e3)
    assert page > library  # its step is one token later


def test_compat_uses_its_own_ceilings_where_the_device_is_not_listed_here(capsys) -> None:
    arguments = ["roofline", "--model", "llama-2-7b", "--hardware", "a40", "--compat", "llm-viewer-2026", "--json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["hardware"] == "a40 as LLM-Viewer lists it"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--method", "chunklm"), "did you mean 'chunkllm'"),
        (("--method", "chunkllm", "--set", "retention=2"), "retention"),
        (("--set", "retention=1"), "has no option"),
        (("--model", "llama-3-8"), "did you mean 'llama-3-8b'"),
        (("--batch", "1,x"), "1,4,16"),
        (("--seqlen", "0"), "--seqlen '0'"),
        (("--tensor", "7"), "--tensor 7"),
        (("--compat", "llm-viewer"), "llm-viewer-2024, llm-viewer-2026"),
        (("--compat", "llm-viewer-2024", "--model", "mixtral-8x7b"), "neither experts"),
        (("--compat", "llm-viewer-2024", "--method", "chunkllm", "--chunk", "9"), "knows no --method, --chunk"),
        (("--hardware", "nowhere.toml"), "cannot be read"),
    ],
)
def test_what_cannot_be_answered(capsys, arguments, told) -> None:
    assert told in complaint(capsys, *arguments)


def test_shapes_are_listed(capsys) -> None:
    assert run(["list", "shapes"]) == 0
    assert "deepseek-v3" in (out := capsys.readouterr().out)
    assert "latent" in out


def test_the_explorer_begins_with_the_question(capsys, tmp_path) -> None:
    page = tmp_path / "pages" / "explorer.html"
    asked = ("--method", "longheads:attention_length=512", "--set", "chunk=64", "--bits", "5/8/16", "--batch", "3")
    assert "explorer: " in answer(capsys, *asked, "--tensor", "2", "--explore", str(page))
    document = _explorer(page)
    selected = document["selected"]
    expected = {"model": "llama-3-8b", "hardware": "h100-sxm", "batch": 3, "weight": 5, "kv": 8, "devices": 2}
    assert {name: selected[name] for name in expected} == expected
    assert selected["method"] == "longheads:attention_length=512, chunk=64"
    assert selected["method"] in document["choices"]["method"]
    assert 5 in document["bits"]["weight"]


def test_the_explorer_has_own_models_and_devices(capsys, tmp_path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({
            "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 6,
            "num_key_value_heads": 3, "intermediate_size": 192, "vocab_size": 100,
        })
    )  # fmt: skip
    (tmp_path / "mine.toml").write_text(
        '[mine]\ntitle = "Mine"\nsource = "D"\nbf16_tflops = 1\nmemory_gb_per_s = 5\nlink_gb_per_s_bidirectional = 8\n'
    )
    question = ("--model", str(tmp_path), "--hardware", str(tmp_path / "mine.toml"), "--tensor", "3")
    page = tmp_path / "explorer.html"
    assert run(["roofline", *question, "--explore", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"explorer": str(page)}
    document = _explorer(page)
    assert document["models"][str(tmp_path)]["degrees"] == [1, 2, 3]
    assert document["devices"]["mine"]["title"] == "Mine"
    assert document["selected"]["hardware"] == "mine"


def _explorer(page) -> dict:
    text = page.read_text().split('id="explorer-data">')[1].split("</script>")[0]
    return json.loads(text)
