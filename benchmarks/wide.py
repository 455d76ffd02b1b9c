"""Twice and four times as many latents, tuned where they are judged: `fair.py` at widths 4,096 and 8,192.

    python benchmarks/wide.py tune run report --width 4096   # 8192 in the same way

Layer 9 of Gemma 3 270M, batch 512, SHORT recipe, 999,936 tokens a run, as in `fair.py`; JumpReLU, TopK, BatchTopK and
Gated. ReLU is left out: at 2,048 latents its FVU is far above everybody's, and its runs are the dearest.

Tuned at L0 = 16 and 64 on validation documents, one seed, starting where `fair.py` ended: the best learning rate at
2,048 latents, half of it and twice of it, each with the other settings that were best there; then, at the best of the
three, the other value of the architecture's second setting (bandwidth, or how soon a latent counts as dead). Gated has
two coefficients at each rate instead, about the one that was best at 2,048 latents, corrected until they give the L0.
The ladder of rates goes on at an edge by the rule of `fair.py`. Judged on test documents with three seeds at L0 = 16,
32 and 64 (8,192 latents: 16 and 64); at 32 the settings are between those of 16 and 64, straight in the logarithms.

Rule, written before any run: the rows T3w to TB1v of `45_claims`, which read results/fair-4096 and results/fair-8192,
are judged as T3, T4 and TB1 are: better on FVU and on delta LM loss at equal L0, over documents and seeds. A row waits
until its two architectures have all of these L0s with three seeds.

Every run is written when it ends, and is not repeated; a stopped one goes on where it stopped. Several processes may
work at the same time if each is given its architecture: `--arch`. One thread each: OMP_NUM_THREADS=1."""
from fair import MAIN, Onward, arguments, work

JUDGED_AT = {4096: (16, 32, 64), 8192: (16, 64)}


class Wide(Onward):
    "A study that begins with the best settings at 2,048 latents"
    archs, tuned_at = ('jumprelu', 'topk', 'batchtopk', 'gated'), (16, 64)

    def __init__(self, width: int):
        super().__init__(f'fair-{width}', width)
        self.l0s = JUDGED_AT[width]
        self.command = f'python benchmarks/wide.py tune run report --width {width}'

    def begin(self, arch: str, l0: int) -> dict: return MAIN.winner(arch, l0)['settings']

    def done(self, arch: str, extended: bool = True) -> dict:  # L0 -> its results; nothing until all L0s are there
        there = super().done(arch, extended)
        return there if len(there) == len(self.l0s) else {}


if __name__ == '__main__':
    a = arguments(__doc__, Wide.archs)
    a.add_argument('--width', type=int, choices=tuple(JUDGED_AT), required=True)
    a = a.parse_args()
    work(Wide(a.width), a)
