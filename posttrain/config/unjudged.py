"""Lists what no gate of a pipeline judges, for a warning before the run starts and for its report.

limits -> sentences
"""

from posttrain.config.limits import HARM, MATCHER_CHOICES, Validation


def unjudged(validation: Validation) -> list[str]:
    """Returns a sentence with its remedy for each thing that nobody judges."""
    sentences = []
    if validation.matcher == "none":
        sentences.append(
            f"nobody judges whether an answer is right (validation.answer_match is none): {MATCHER_CHOICES}"
        )
    if HARM not in validation.custom_checks:
        sentences.append(
            f"nobody judges whether an answer is harmful (validation.custom_checks has no {HARM}): "
            "set validation.judge, red_team_prompts and output_format.declines_with"
        )
    if not (validation.suites or validation.lm_eval_tasks):
        sentences.append(
            "nobody judges whether the model has lost general skills (validation.skills is false): "
            "set it to true, or name the suites that the product needs"
        )
    return sentences
