"""JumpReLU whose dead latents are left to AuxK: `fair.py` without the SHORT recipe's pre-activation loss.

    python benchmarks/auxk_only.py tune run report                 # 2,048 latents
    python benchmarks/auxk_only.py run report --width 4096         # the same settings with more latents; or 8192

The SHORT recipe revives JumpReLU's dead latents twice: by AuxK, as TopK's, and by a loss on their pre-activations,
weight 0.01, which lifts each of them until it fires. The second is a departure, in no rival's recipe and not in the
paper. It was chosen at L0 = 32 and a quarter of a million tokens, where few latents are dead. With 8,192 latents at
L0 = 16 it wrecks the run: when the selection ends over 2,000 latents are dead, all are lifted at once, L0 trebles, and
of three seeds one ends at an FVU of 0.30, one at 0.16 and one at 0.14 (results/fair-8192). On validation documents, one
seed, 2,048 latents, L0 = 16, leaving it out gave an FVU of 0.130 where the study's winner has 0.141. So the comparison
of `fair.py` may have held JumpReLU back at the sparse end.

Here JumpReLU is tuned again without that loss, by the rules of `fair.py`: six runs at each of the four L0s, three rates
by two values of the second setting, which is now TopK's (how soon a latent counts as dead); bandwidth 0.05 and the
thresholds' rate as they were best there; selection for half the run, at L0 = 8 for three quarters, as was best there;
the ladder of rates goes on at an edge. Validation documents decide. Three seeds at the same six L0s, judged on test
documents beside the rivals of `fair.py`.

Rule, written on 2026-11-29 before any run but the one named above: rows T3a, T4a and TB1a of `45_claims` are judged as
T3, T4 and TB1 are, with JumpReLU's runs from here. They do not replace those rows: JumpReLU has then been tuned twice,
and its rivals once, so the front page shows both. With 4,096 and 8,192 latents nothing is tuned (seven of eight winners
kept their settings with 4,096); these runs have no row and are shown beside T4w.

Every run is written to results/fair-auxk when it ends; one thread each, several processes if each has its `--l0`."""
from dataclasses import asdict
from itertools import product

from fair import COMPARED, DEAD_AFTER, MAIN, SEEDS, Fair, N, arguments, work
from wide import JUDGED_AT, Wide

from jumprelu_sae.recipe import Plan


class AuxKOnly(Fair):
    "JumpReLU without the pre-activation loss"
    archs, fixed = ('jumprelu',), dict(dead_coef=0.)
    command = 'python benchmarks/auxk_only.py tune run report'

    def __init__(self, name: str = 'fair-auxk', width: int = 2048, n: int = N): super().__init__(name, width, n)

    def second_settings(self, arch: str, l0: int) -> list[dict]:  # two
        start = .75 if l0 == 8 else .5
        return [dict(dead_after=n, bandwidth=.05, start=start, threshold_lr=.01) for n in DEAD_AFTER]

    def varied(self, j: Plan) -> dict:
        both = asdict(j.train) | dict(bandwidth=j.cfg.bandwidth)
        return {k: both[k] for k in ('lr', 'dead_after', 'bandwidth', 'start', 'threshold_lr')}

    def first_jobs(self, arch: str, l0: int) -> list[Plan]:  # six
        grid = product(self.rates(arch, l0), self.second_settings(arch, l0))
        return [self.job(arch, l0, 0, lr=lr, **m) for lr, m in grid]

    def has_ladder(self, arch: str, l0: int) -> bool: return True

    def rivals(self) -> dict: return {a: MAIN.done(a) for a in COMPARED[1:]}  # name -> L0 -> results

    def runs_compared(self, extended: bool = True) -> dict:
        return {'jumprelu': self.done('jumprelu', extended)} | self.rivals()


class Wider(AuxKOnly):
    "With more latents, the settings of 2,048 latents, L0 16 to 64"
    def __init__(self, width: int):
        super().__init__(f'fair-auxk-{width}', width)
        self.l0s = JUDGED_AT[width]
        self.command = f'python benchmarks/auxk_only.py run report --width {width}'

    def tuned(self, arch: str, extended: bool = True) -> list[int]: return []

    def settings_at(self, arch: str, l0: int, extended: bool = True) -> dict:
        return AuxKOnly().settings_at(arch, l0)

    def done(self, arch: str, extended: bool = True) -> dict:
        jobs = {l0: [self.run_job(arch, l0, s) for s in SEEDS] for l0 in self.l0s}
        there = {l0: js for l0, js in jobs.items() if all(self.study.has('run', j) for j in js)}
        return {l0: [self.study.result('run', j) for j in js] for l0, js in there.items()}

    def rivals(self) -> dict: return {a: rs for a in COMPARED[1:] if (rs := Wide(self.width).done(a))}


if __name__ == '__main__':
    a = arguments(__doc__, AuxKOnly.archs)
    a.add_argument('--width', type=int, choices=(2048, *JUDGED_AT), default=2048)
    a = a.parse_args()
    work(AuxKOnly() if a.width == 2048 else Wider(a.width), a)
