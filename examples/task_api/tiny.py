"""Build a model small enough to train in seconds on a CPU: a 2-layer Llama with a tokenizer of its own.

folder, seed -> config.json, model.safetensors (bfloat16), tokenizer with a ChatML template, generation_config.json

LoRA can teach nothing to random weights. With --num-steps all weights are first trained, on Task API rows of another
seed: the model then stands where a pre-trained one would.

    python -m examples.task_api.tiny --output DIR --num-steps 60
"""

import argparse
import random
from pathlib import Path

from examples.task_api.generate import generate

VOCAB_SIZE = 600
END_OF_TURN, PAD = "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", END_OF_TURN, PAD]
WIDTHS = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
BATCH_SIZE = 16
LEARNING_RATE = 5e-3
PRETRAINING_SEED = 1_000
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def training_text() -> list[str]:
    """Every turn of the example's own rows, so that 600 tokens are enough to keep its answers short. Off-topic prompts
    are left out: all of them are other things in the same words.
    """
    files = generate(num_off_topic=0, seed=0)
    rows = [row for rows in files.values() for row in rows]
    turns = [turn for row in rows for value in row.values() if isinstance(value, list) for turn in value]
    return [f"{turn['role']}\n{turn['content']}" for turn in turns]


def build_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TURN, pad_token=PAD, model_max_length=256
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_tiny_model(path: Path | str, *, seed: int = 0, num_steps: int = 0, **config_values) -> Path:
    """Write the model folder. `config_values` replace values of the LlamaConfig (tie_word_embeddings=True, ...)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    values = {
        "vocab_size": len(tokenizer),
        **WIDTHS,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**values | config_values))
    pretrain(model, tokenizer, num_steps=num_steps, seed=seed)
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def pretrain(model, tokenizer, *, num_steps: int, seed: int) -> None:
    """Train all weights on whole rows, prompts included, which are not those of `generate(seed=seed)`."""
    import torch

    rng = random.Random(seed)
    rows = generate(num_sft=BATCH_SIZE * max(num_steps, 1), num_preferences=0, seed=PRETRAINING_SEED + seed)["sft"]
    turns = [row["prompt"] + row["completion"] for row in rows]
    texts = [torch.tensor(tokenizer.apply_chat_template(turn, return_dict=False)) for turn in turns]
    rng.shuffle(texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(num_steps):
        batch = texts[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.task_api.tiny", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-steps", type=int, default=0, help="steps of training before the model is written")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    print(build_tiny_model(args.output, seed=args.seed, num_steps=args.num_steps))


if __name__ == "__main__":
    main()
