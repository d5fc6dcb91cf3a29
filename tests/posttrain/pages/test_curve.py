import re
from html.parser import HTMLParser

from posttrain.pages.curve import write_curve

HISTORY = [
    *({"step": step, "loss": 2 / step, "learning_rate": 2e-4 / step} for step in range(1, 9)),
    {"step": 8, "train_runtime": 3.0, "train_loss": 0.4},
    {"step": 8, "eval_loss": 0.3},
]


def test_page_needs_nothing_else_and_says_what_it_shows(tmp_path):
    write_curve(HISTORY, tmp_path / "curve.html", title="SFT <a & b>")
    page = (tmp_path / "curve.html").read_text()
    HTMLParser().feed(page)
    assert "<title>SFT &lt;a &amp; b&gt;</title>" in page and "<svg" in page
    for label in ("loss (nats)", "learning rate", "optimizer step", "training loss", "held-out loss"):
        assert f">{label}</text>" in page
    assert (
        "8 optimizer steps; training loss 2 at the first step, 0.25 at the last; held-out loss 0.3 at the end" in page
    )
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!#)|@import|<script""", page)


def test_colours_follow_the_screen(tmp_path):
    write_curve(HISTORY, tmp_path / "curve.html", title="t")
    page = (tmp_path / "curve.html").read_text()
    assert "prefers-color-scheme: dark" in page and "stroke: var(--loss)" in page
    assert not re.search("#0[1-5]0[1-5]0[1-5]", page)


def test_same_history_is_the_same_file(tmp_path):
    for name in ("one", "two"):
        write_curve(HISTORY, tmp_path / name, title="t")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_one_step_and_no_evaluation(tmp_path):
    write_curve(HISTORY[:1], tmp_path / "curve.html", title="t")
    assert "1 optimizer steps" in (tmp_path / "curve.html").read_text()


def test_a_preference_training_shows_its_rewards(tmp_path):
    steps = [entry | {"rewards/margins": 0.1, "rewards/accuracies": 0.9} for entry in HISTORY[:8]]
    evaluations = [{"step": 8, "eval_loss": 0.3, "eval_rewards/margins": 0.2, "eval_rewards/accuracies": 1.0}]
    write_curve(steps + evaluations, tmp_path / "dpo.html", title="DPO")
    write_curve(HISTORY, tmp_path / "sft.html", title="SFT")
    for label in ("reward margin", "reward accuracy"):
        assert f">{label}</text>" in (tmp_path / "dpo.html").read_text()
        assert label not in (tmp_path / "sft.html").read_text()
