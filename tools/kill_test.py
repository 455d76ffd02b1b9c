"Kill a run at random moments, start it again until it ends, and compare its numbers with those of a run left alone."
import json, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

def command(out): return [sys.executable, '-c', 'import sys; from jumprelu_sae.cli import main; sys.exit(main())', 'reproduce', '--preset', 'tiny', '--quiet', '--out', str(out)]

def numbers(out): # everything measured, without dates and commits
    return [{k: r[k] for k in ('name', 'config', 'metrics', 'arrays')} for r in json.loads((Path(out)/'results.json').read_text())['results']]

def run(out, cache, after=None, sig=None):
    "Run to the end, or kill after `after` seconds; the exit code"
    p = subprocess.Popen(command(out), env=dict(os.environ, JUMPRELU_SAE_CACHE=str(cache)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try: text = p.communicate(timeout=after)[0]
    except subprocess.TimeoutExpired:
        p.send_signal(sig)
        text = p.communicate()[0]
    if p.returncode in (1, 2): raise SystemExit(f'the run failed instead of going on:\n{text}')
    return p.returncode

def kill_test(folder, times, seed=0, say=print):
    "The numbers of a run killed `times` times with SIGKILL, SIGTERM and SIGINT, and of one left alone"
    folder, rng = Path(folder), random.Random(seed)
    t = time.monotonic()
    assert run(folder/'alone', folder/'cache-alone') == 0
    whole = time.monotonic() - t
    for i in range(times):
        sig = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        after = rng.uniform(.2, 1)*whole
        code = run(folder/'killed', folder/'cache-killed', after, sig)
        say(f'{i+1}: {sig.name} after {after:.1f} s of {whole:.1f}, exit code {code}')
        if code == 0: shutil.rmtree(folder/'killed'); say('   it had already finished: its folder is deleted and it starts again')
    assert run(folder/'killed', folder/'cache-killed') == 0
    return numbers(folder/'killed'), numbers(folder/'alone')

if __name__ == '__main__':
    times, seed = (int(v) for v in (sys.argv[1:] + ['10', '0'])[:2])
    with tempfile.TemporaryDirectory() as d: a, b = kill_test(d, times, seed)
    print('the same numbers' if a == b else 'DIFFERENT numbers')
    sys.exit(a != b)
