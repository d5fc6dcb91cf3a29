"""Declares what each step takes and gives: typed inputs and outputs, and one container. There is no logic here."""

from components.check_alignment import check_alignment, check_preference_alignment, check_safety
from components.check_champion import (
    check_adapter_champion,
    check_champion,
    check_preference_champion,
    check_sft_champion,
)
from components.check_data import check_data, check_preference_data, check_sft_data
from components.check_export import check_export, check_preference_export, check_sft_export
from components.check_merge import check_merge
from components.check_pairs import check_pairs
from components.check_sft import check_sft
from components.compare_trials import compare_trials
from components.export_model import export_model
from components.fetch_model import fetch_model
from components.hold_out import hold_out
from components.merge_adapter import merge_adapter
from components.preflight import preflight
from components.prepare_data import prepare_data, prepare_data_with_references
from components.promote_model import promote_model
from components.publish_model import publish_exported_model, publish_model
from components.register_model import register_model
from components.reject import reject, reject_and_tell
from components.report_run import report_run
from components.run_trial import (
    judge_preference_winner,
    judge_sft_winner,
    judge_winner,
    run_preference_trials,
    run_sft_trials,
    run_trials,
)
from components.sample_pairs import sample_pairs, sample_pairs_alone
from components.train_dpo import train_dpo
from components.train_sft import train_sft

__all__ = [
    "check_adapter_champion",
    "check_alignment",
    "check_champion",
    "check_data",
    "check_export",
    "check_merge",
    "check_pairs",
    "check_preference_alignment",
    "check_preference_champion",
    "check_preference_data",
    "check_preference_export",
    "check_safety",
    "check_sft",
    "check_sft_champion",
    "check_sft_data",
    "check_sft_export",
    "compare_trials",
    "export_model",
    "fetch_model",
    "hold_out",
    "judge_preference_winner",
    "judge_sft_winner",
    "judge_winner",
    "merge_adapter",
    "preflight",
    "prepare_data",
    "prepare_data_with_references",
    "promote_model",
    "publish_exported_model",
    "publish_model",
    "register_model",
    "reject",
    "reject_and_tell",
    "report_run",
    "run_preference_trials",
    "run_sft_trials",
    "run_trials",
    "sample_pairs",
    "sample_pairs_alone",
    "train_dpo",
    "train_sft",
]
