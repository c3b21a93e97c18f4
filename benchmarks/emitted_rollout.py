"""How sequences that are the scored rollouts gone on (`emitted_rollout: scored`) differ in law from fresh ones.

    python benchmarks/emitted_rollout.py [--candidates 40000] [--write HARDWARE]

Of the rules of the released law in the band 0.5 to 1: the gzip ratio of the first ten frames of what is emitted, and
the share of rules whose emitted frames lie in the band themselves. A rule is accepted by its scored rollout, so fresh
ones regress towards the mean; that is the law of the released code, and `scored` is biased by the difference.
"""

import argparse
import datetime
from pathlib import Path

import numpy as np

from megatron_nca import ops
from megatron_nca.config.law import preset, replace
from megatron_nca.nca import simulate

LAW = replace(preset("released"), num_rules=None)


def frames_scored(law: object, candidates: np.ndarray, threads: int) -> np.ndarray:
    """gzip ratios (N,) of the first `score_frames` frames that are emitted for each candidate, delimiters left out."""
    documents = simulate.documents(law, 0, candidates, np.zeros_like(candidates), threads=threads)
    frames = documents.reshape(len(candidates), law.num_frames, law.frame_tokens)[:, : law.score_frames, 1:-1]
    tokens = np.ascontiguousarray(frames.reshape(len(candidates), -1), dtype="<i4")
    return ops.gzip_sizes(tokens.view(np.uint8), threads=threads) / (4 * tokens.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", metavar="HARDWARE", help="keep the table in benchmarks/results/")
    arguments = parser.parse_args()
    accepted = np.flatnonzero(simulate.accept(LAW, 0, 0, arguments.candidates, threads=arguments.threads))
    rows = []
    for name in ("fresh", "scored"):
        ratios = frames_scored(replace(LAW, emitted_rollout=name), accepted, arguments.threads)
        inside = np.mean((ratios > LAW.band[0]) & (ratios < LAW.band[1]))
        deciles = ", ".join(f"{value:.4f}" for value in np.quantile(ratios, (0.05, 0.5, 0.95)))
        rows.append(f"| {name} | {100 * inside:.1f} % | {ratios.mean():.4f} | {deciles} |")
    today = datetime.date.today().isoformat()
    lines = [
        "# Emitting the scored rollout in place of a fresh one",
        "",
        f"{today}, `python benchmarks/emitted_rollout.py --candidates {arguments.candidates}`: released law, band 0.5",
        f"to 1, {len(accepted):,} accepted rules, seed 0; the first ten frames that are emitted; of no hardware.",
        "",
        "| emitted_rollout | in the band | mean ratio | 5 %, 50 % and 95 % |",
        "|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if arguments.write:
        path = Path(__file__).parent / "results" / f"emitted_rollout_{arguments.write}_{today}.md"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
