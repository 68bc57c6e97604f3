"""The tokenizer: byte-level BPE over the corpus, saved as a standard Hugging Face folder with a chat template.

Three choices a learner should know. Digits stand alone, so that a number is copied digit by digit. Every turn of a chat
begins with a space, so that a copied word has the same tokens in the question and in the answer. And <|end|> closes
every turn and every text: it is the end-of-text token that generation stops at.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from lora_lab.paths import BASE
from lora_lab.world.corpus import ASSISTANT, BOS, END, PAD, USER, documents, render
from lora_lab.world.words import FUNCTION_WORDS, LETTER_WORDS, PLAIN_WORDS

VOCABULARY = 1792
SPECIAL = [PAD, BOS, END, USER, ASSISTANT]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int = 1, count: int = 60_000, vocabulary: int = VOCABULARY):
    """A `PreTrainedTokenizerFast` trained on `count` documents. The same arguments give the same tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for document in documents(seed, count) for _, text in document)
    # Every word of the world is worth a token, however rare: say each as often as a word of a common sentence.
    lists = 300 * [" ".join(PLAIN_WORDS), " ".join(word.capitalize() for word in FUNCTION_WORDS + LETTER_WORDS)]
    inner.train_from_iterator((" " + text for text in [*texts, *lists]), trainer)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode_documents(tokenizer, batch: list) -> list[list[int]]:
    """Token ids of each document as the model reads it, `<|bos|>` first and `<|end|>` last."""
    return tokenizer([render(document) for document in batch], add_special_tokens=False)["input_ids"]


def save(tokenizer, folder: Path) -> None:
    """Write the tokenizer's files into `folder`, each one whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tokenizer.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            shutil.move(file, folder / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tokenizer on the corpus.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60_000, help="documents to learn the merges from")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--out", type=Path, default=BASE)
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.seed, args.count, args.vocabulary)
    save(tokenizer, args.out)
    print(f"{len(tokenizer)} tokens in {args.out}")


if __name__ == "__main__":
    main()
