"""Turn pairs of a prompt and an answer into fine-tuning data: PREFIX_text_document and its twin PREFIX_loss_mask.

The twin has the same lengths and holds 1 for each token of an answer and its end, 0 for those of the prompt. A recipe
that names PREFIX_text_document scores answers only.

Layouts: gsm8k, lines with "question" and "answer"; bigbench, a task.json with "examples" of "input" and "target" or
"target_scores", with the task's own prefixes; keys, lines whose keys --json-keys names.

Examples:
    python data_tools/preprocess_pairs.py --layout gsm8k --input gsm8k/train.jsonl --output-prefix gsm8k/train \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model corpus/tokenizer.model --hold-out validation=0.05
    python data_tools/preprocess_pairs.py --layout bigbench --input bigbench/*/task.json --output-prefix bigbench/all \\
        --tokenizer-type GPT2BPETokenizer --vocab-file gpt2/vocab.json --merge-file gpt2/merges.txt
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data.pairs import LAYOUTS, Pairs, make_pairs
from megatron_nca.data.preprocess_report import of_input
from megatron_nca.data.tokenizer_flags import add_hold_out, add_on_bad_line, add_tokenizer_flags, tokenizer_of
from megatron_nca.data.tool import output_prefix, run_tool, tool_parser


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("preprocess_pairs.py", __doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="files, in this order")
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--json-keys", nargs=2, metavar=("PROMPT", "ANSWER"), help="of --layout keys")
    parser.add_argument("--between", default="\n", help="text after each prompt, not scored (default: a new line; not "
                                                        "for bigbench)")
    parser.add_argument("--output-prefix", type=output_prefix, required=True, help="path of the output")
    add_on_bad_line(parser)
    add_hold_out(parser)
    add_tokenizer_flags(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    settings = Pairs(inputs=tuple(arguments.input), tokenizer=tokenizer_of(arguments), layout=arguments.layout,
                     keys=arguments.json_keys and tuple(arguments.json_keys), between=arguments.between,
                     on_bad_line=arguments.on_bad_line, hold_out=tuple(arguments.hold_out))
    manifests = make_pairs(settings, arguments.output_prefix)
    for manifest in manifests:
        scored = manifest.origin["answer_tokens"]
        print(f"{arguments.output_prefix} {manifest.origin['part']}: {manifest.documents:,} pairs, "
              f"{manifest.tokens:,} tokens, of which {scored:,} are scored")
    print(of_input(manifests[0].origin))


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
