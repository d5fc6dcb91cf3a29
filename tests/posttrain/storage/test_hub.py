"""Refusals of the Hub, in words; asked over HTTP."""

import pytest

from posttrain.storage import hub as asking

READER = {"name": "ann", "orgs": [{"name": "acme"}], "auth": {"accessToken": {"role": "read"}}}
WRITER = READER | {"auth": {"accessToken": {"role": "write"}}}


@pytest.fixture
def accounts(hub, monkeypatch):
    hub.accounts |= {"hf_reader": READER, "hf_writer": WRITER}
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return hub


def check(repo: str) -> None:
    asking.check_upload(repo, name="hub_repo_id")


def test_a_repository_that_may_be_written_to_or_made_passes(accounts):
    accounts.writable.add("other/model")
    check("other/model")
    check("ann/new")
    check("acme/new")


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("", "ann/new", "hub_repo_id: 'ann/new' needs a token with write access; give publish_model one in HF_TOKEN"),
        ("hf_writer", "other/new", "'other/new' does not exist, and the token can only create one below ann or acme"),
        ("hf_reader", "ann/new", "'ann/new' does not exist, and the token can only read; give one with write access"),
        ("hf_writer", "other/model", "the token may not write to 'other/model'; give one with write access"),
        ("hf_revoked", "ann/new", "the Hub does not know the token; replace it by a new one"),
    ],
)
def test_a_repository_that_publishing_could_not_fill_is_refused(accounts, monkeypatch, tmp_path, token, repo, message):
    accounts.repos["other/model"] = tmp_path
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=message) as caught:
        check(repo)
    assert "hf_" not in str(caught.value)


def test_the_token_of_publishing_counts_before_that_of_reading(accounts, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    monkeypatch.setenv("HF_UPLOAD_TOKEN", "hf_writer")
    check("ann/new")
    assert {token for _, token in accounts.requests} == {"Bearer hf_writer"}


def test_a_data_set_is_looked_for(hub):
    hub.datasets.add("org/rows")
    asking.check_data_set("hf://org/rows@main", name="sft_dataset")
    with pytest.raises(ValueError, match="sft_dataset: 'org/none' is neither a file nor readable on the Hub"):
        asking.check_data_set("org/none", name="sft_dataset")


def test_a_hub_that_does_not_answer_is_no_bad_input(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(ConnectionError, match="hub_repo_id: 'ann/new': the Hub does not answer"):
        check("ann/new")
    with pytest.raises(ConnectionError, match="sft_dataset: 'org/rows' is not a file, and the Hub does not answer"):
        asking.check_data_set("org/rows", name="sft_dataset")
