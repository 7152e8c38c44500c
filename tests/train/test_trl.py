"""What replies and preferences cost is what trl's trainers say, on a float model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trilobit.train.objectives.preferences import PreferenceTrainer
from trilobit.train.objectives.tokens import TokenTrainer
from trilobit.train.recipes import recipe_of

pytestmark = pytest.mark.filterwarnings("ignore")  # trl's own

RECIPE = recipe_of(
    {
        "kind": "sft",
        "name": "replies",
        "start": "base",
        "data": {"files": ["chat.jsonl"]},
        "schedule": {"steps": 1},
    }
)
WORDS = ["<pad>", "<eos>", *"abcdefgh"]
PROMPTS = ["a b", "c", "a a a"]
BETTER = [" d e", " f", " g h a"]
WORSE = [" d", " b b c a", " h"]


@pytest.fixture
def tokenizer() -> Any:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """Two models that differ."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model, reference.eval()


def _settings(kind: Any, folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        **more,
    )


def _ours(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return {**inputs, "labels": batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)}


def test_preferences_cost_what_trl_says(pair: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, reference = pair
    theirs = DPOTrainer(
        model=model,
        ref_model=reference,
        args=_settings(DPOConfig, tmp_path, beta=0.3),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "chosen": BETTER, "rejected": WORSE}),
        processing_class=tokenizer,
    )
    (batch,) = theirs.get_train_dataloader()
    expected = float(theirs.compute_loss(model, dict(batch)).detach())
    ours = PreferenceTrainer(
        recipe=RECIPE, output=tmp_path, model=model, args=theirs.args, reference=reference, beta=0.3
    )
    loss = float(ours.compute_loss(model.train(), _ours(batch)).detach())
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss > 0.75  # that of guessing is 0.693


def test_replies_cost_what_trl_says(pair: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, _ = pair
    theirs = SFTTrainer(
        model=model,
        args=_settings(SFTConfig, tmp_path),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "completion": BETTER}),
        processing_class=tokenizer,
    )
    (batch,) = theirs.get_train_dataloader()
    inputs = dict(batch)
    counted = int((inputs["labels"][:, 1:] != -100).sum())
    assert counted == sum(len(reply.split()) + 1 for reply in BETTER)  # and the end
    expected = float(theirs.compute_loss(model, inputs, num_items_in_batch=counted).detach())
    ours = TokenTrainer(recipe=RECIPE, output=tmp_path, model=model, args=theirs.args)
    loss = float(ours.compute_loss(model.train(), dict(batch), num_items_in_batch=counted).detach())
    assert loss == pytest.approx(expected, rel=1e-5)
