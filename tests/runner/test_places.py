import json
import re
from pathlib import Path

from runner import places


def test_places_of_a_configuration_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("{}")
    place = places.of_step({
        "step": "check_alignment", "storage_root": str(tmp_path), "overrides": {},
        "config": {
            "allowed_prefixes": ["gs://elsewhere"],
            "validation": {"red_team_prompts": str(tmp_path / "prompts.jsonl"), "judge_model": None},
            "upload_to_hub": False,
        },
    })  # fmt: skip
    assert place == places.Places(read=(tmp_path / "prompts.jsonl",), written=(tmp_path,), need_network=False)


def test_a_hub_id_needs_a_network_and_a_folder_of_that_name_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert places.of_step({"base_model": "org/model"}).need_network
    Path("org/model").mkdir(parents=True)
    assert places.of_step({"base_model": "org/model"}) == places.Places((Path("org/model"),), (), need_network=False)


def test_every_setting_that_is_an_address_is_known():
    files = Path("posttrain/config").glob("*.py")
    source = "\n".join(file.read_text() for file in files)
    addresses = set(re.findall(r"^    (\w+): .*#.*gs://", source, re.MULTILINE))
    addresses |= set(re.findall(r"^    # .*gs://.*\n    (\w+): ", source, re.MULTILINE))
    assert {"red_team_prompts", "sft_dataset", "base_model", "judge_model", "storage_root"} <= addresses
    assert addresses - {"allowed_prefixes"} <= {*places.READ, *places.WRITTEN}


def test_each_of_several_data_sets_is_read(tmp_path):
    files = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    dataset = json.dumps([files[0], {"uri": files[1], "weight": 2}])
    assert places.of_step({"dataset": dataset}) == places.Places((Path(files[0]), Path(files[1])), (), False)
    assert places.of_step({"sft_dataset": json.dumps([files[0], "s3://bucket/rows.jsonl"])}).need_network
