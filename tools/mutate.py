"""Bring each of the seven faults of `02_ste` into a copy of the package, and see which tests go red.

`python tools/mutate.py` prints a table and exits with 1 if a fault survives, or if a text to be replaced is not in the source exactly once.
`python tools/mutate.py "1/eps twice"` runs the faults whose name holds that text; `python tools/mutate.py --save` runs all and writes results/mutants.json."""
import os, re, shutil, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIB = 'jumprelu_sae'
STE, SPARSE = ['tests/test_golden.py', 'tests/test_ste.py'], ['tests/test_sparse.py::test_golden_values_by_the_sparse_step']

@dataclass
class Mutant:
    fault: str   # which of the seven
    where: str   # function it is brought into
    file: str    # of the package
    old: str     # what stands there, exactly once
    new: str     # what shall stand there
    tests: list  # what to run
    nb: str = '' # a notebook that must have the fault too, because its cells are what is tested

MUTANTS = [
    Mutant('1 step on f', 'l0', 'ste.py', 'return step_ste(pre, theta, bandwidth, kernel).sum', 'return step_ste(pre*(pre > theta), theta, bandwidth, kernel).sum', STE),
    Mutant('1 step on f', 'jumprelu_and_l0', 'ste.py', '@ w.reshape(-1, len(theta))', '@ _window(_gate(pre, theta).mul_(pre), theta, ctx.bandwidth, ctx.kernel).reshape(-1, len(theta))', STE),
    Mutant('1 step on f', 'JumpReLUSAE.fire', 'sae.py', 'else step_ste(pre, theta, c.bandwidth, K)', 'else step_ste(f, theta, c.bandwidth, K)', ['tests/test_sparse.py::test_same_as_dense[jumprelu-float64]']),
    Mutant('2 ReLU before the step', 'all windows', 'ste.py', 'u = (pre - theta).div_(bandwidth)', 'u = (pre.relu() - theta).div_(bandwidth)', STE),
    Mutant('3 no chain factor of log theta', 'JumpReLUSAE.threshold', 'sae.py', 'return self.theta_param.exp() if', 'return self.theta_param + (self.theta_param.exp() - self.theta_param).detach() if', SPARSE),
    Mutant('4 1/eps twice', 'step_ste', 'ste.py', 'return None, -(w.sum_to_size(theta.shape)/ctx.bandwidth)', 'return None, -(w.sum_to_size(theta.shape)/ctx.bandwidth**2)', STE),
    Mutant('4 1/eps twice', 'jumprelu_ste', 'ste.py', '*theta/ctx.bandwidth)', '*theta/ctx.bandwidth**2)', STE),
    Mutant('4 1/eps twice', 'jumprelu_and_l0', 'ste.py', '-(g_theta/ctx.bandwidth)', '-(g_theta/ctx.bandwidth**2)', STE),
    Mutant('5 z for theta in eq. 11', 'jumprelu_ste', 'ste.py', '-(w.sum_to_size(theta.shape)*theta/', '-((w*pre).sum_to_size(theta.shape)/', STE),
    Mutant('5 z for theta in eq. 11', 'jumprelu_and_l0', 'ste.py', 'w.mul_(g_f).sum_to_size(theta.shape)*theta', 'w.mul_(g_f).mul_(pre).sum_to_size(theta.shape)', STE),
    Mutant('6 bf16 thresholds', 'JumpReLUSAE._apply', 'sae.py', 'if p.dtype in (torch.bfloat16, torch.float16):', 'if False:', ['nbs/04_sae.ipynb'], '04_sae.ipynb'),
    Mutant('7 leak into z', 'step_ste', 'ste.py', 'return None, -(w.sum_to_size(theta.shape)/', 'return w/ctx.bandwidth, -(w.sum_to_size(theta.shape)/', STE),
    Mutant('7 leak into z', 'jumprelu_ste', 'ste.py', 'g_pre = _gate(pre, theta).mul_(g)\n', 'g_pre = _gate(pre, theta).mul_(g) + _window(pre, theta, ctx.bandwidth, ctx.kernel).mul_(g)*theta/ctx.bandwidth\n', STE),
    Mutant('7 leak into z', 'jumprelu_and_l0', 'ste.py', 'g_pre = _gate(pre, theta).mul_(g_f)', 'g_pre = _gate(pre, theta).mul_(g_f) + g_l0[..., None]*_window(pre, theta, ctx.bandwidth, ctx.kernel)/ctx.bandwidth', STE),
]

# Loaded by pytest in the copy: the copy must be what is imported, and every red test is named on a line of its own
PLUGIN = f'''
from pathlib import Path
import {LIB}
here = Path({LIB}.__file__).resolve().parent.parent
if here != Path(__file__).resolve().parent: raise ImportError(f'{LIB} comes from {{here}} and not from the copy')
def pytest_sessionstart(): print('COPY IS TESTED')
def pytest_runtest_logreport(report):
    if report.failed: print(f'\\nRED {{report.nodeid}}')
'''

def files(m):
    "Where the fault goes, from the root"
    return [f'{LIB}/{m.file}', *([f'nbs/{m.nb}'] if m.nb else [])]

def matches(m):
    "How often the text to be replaced is in each source"
    return [(ROOT/f).read_text(encoding='utf-8').count(m.old) for f in files(m)]

def copy(folder):
    "The package, its tests and notebooks in `folder`, and the plugin; nothing is installed"
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for d in (LIB, 'tests', 'nbs', 'results'): shutil.copytree(ROOT/d, folder/d, ignore=skip)
    for f in ('conftest.py', 'pyproject.toml', 'settings.ini'): shutil.copy(ROOT/f, folder)
    (folder/'mutant_plugin.py').write_text(PLUGIN, encoding='utf-8')

def run_tests(folder, tests):
    "The red tests of the copy in `folder`, in the order they ran; raises RuntimeError when the run says nothing about the copy"
    env = dict(os.environ, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1')
    cmd = [sys.executable, '-m', 'pytest', '-q', '-s', '--tb=no', '-p', 'no:cacheprovider', '-p', 'mutant_plugin', *tests]
    r = subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True)
    if 'COPY IS TESTED' not in r.stdout or r.returncode not in (0, 1): raise RuntimeError(f'pytest ended with {r.returncode}:\n{r.stdout[-2000:]}\n{r.stderr[-2000:]}')
    red = re.findall(r'^RED (.+)$', r.stdout, flags=re.M)
    if bool(red) != (r.returncode == 1): raise RuntimeError(f'red tests and exit status do not agree:\n{r.stdout[-2000:]}')
    return red

def run_mutant(m, folder):
    "The tests that notice `m` in the copy in `folder`; the copy is as before afterwards"
    was = {folder/f: (folder/f).read_text(encoding='utf-8') for f in files(m)}
    try:
        for p, src in was.items(): p.write_text(src.replace(m.old, m.new), encoding='utf-8')
        return run_tests(folder, m.tests)
    finally:
        for p, src in was.items(): p.write_text(src, encoding='utf-8')

def main(which='', save=False):
    chosen, bad, rows, start = [m for m in MUTANTS if which in m.fault], 0, [], time.monotonic()
    if not chosen: print(f'no fault has {which!r} in its name: ' + ', '.join(dict.fromkeys(m.fault for m in MUTANTS))); return 1
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        copy(folder)
        tests = list(dict.fromkeys(t for m in chosen for t in m.tests))
        if red := run_tests(folder, tests): print(f'red without any mutation: {red[0]}'); return 1
        print(f"{'fault':31s} {'brought into':22s} red  the first of them")
        for m in chosen:
            if any(n != 1 for n in matches(m)): red, out = [], f'NO MATCH: its text is in {" and ".join(files(m))} {matches(m)} times'
            else: out = (red := run_mutant(m, folder)) and red[0] or 'SURVIVED'
            bad += not red
            rows.append(dict(fault=m.fault, where=m.where, file=m.file, red=len(red), first=out))
            print(f'{m.fault:31s} {m.where:22s} {len(red):3d}  {out}', flush=True)
    print(f'{len(chosen)} mutants, {bad} unnoticed')
    if save:
        from jumprelu_sae.core import run_env, write_json
        write_json(ROOT/'results'/'mutants.json', dict(format=1, command='python tools/mutate.py --save', rows=rows, seconds=round(time.monotonic() - start, 1), env=run_env()))
    return int(bad > 0)

if __name__ == '__main__': sys.exit(main(*[a for a in sys.argv[1:] if a != '--save'][:1], save='--save' in sys.argv))
