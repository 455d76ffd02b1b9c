"""Kill a harvest to disk with SIGKILL at random moments, start it again each time, and look at what is there; then flip
single bytes of the store.

`python tools/kill_harvest.py 20` prints a line for each of 20 kills and 20 flips and exits with 1 if anything was lost,
or went unnoticed. `python tools/kill_harvest.py KILLS FLIPS SEED` sets them one by one."""
import functools, multiprocessing, os, random, shutil, signal, sys, tempfile, time
from pathlib import Path
import torch
from jumprelu_sae.core import UserError, sha256
from jumprelu_sae.harvest import ActivationStore, harvest
from jumprelu_sae.lm import load_lm
from jumprelu_sae.text import ByteTokenizer, generated_corpus, pack

SITES = ['resid.1', 'attn.2']   # both are read in one pass

@functools.cache
def given():
    "Model and tokens, made once; on one thread, because a fork would lose the others"
    torch.set_num_threads(1)
    return load_lm('tiny-gemma2'), pack(generated_corpus(40), ByteTokenizer(), 64, 63*400)

def start(out):
    "A harvest in a process of its own"
    p = multiprocessing.get_context('fork').Process(
        target=harvest, args=(*given(), SITES, out), kwargs=dict(batch_rows=8, shard_rows=8, progress=False)
    )
    p.start()
    return p

def finish(p):
    p.join()
    if p.exitcode: raise SystemExit(f'the harvest failed instead of going on (exit code {p.exitcode})')

def half_written(name):
    "Ours end in .tmp; safetensors writes aside as well, to a name such as .tmpEJLQ6z"
    return name.startswith('.') and (name.endswith('.tmp') or len(name) == 10 and name.startswith('.tmp'))

def look(out, before):
    """What each site's manifest lists: dict of path -> (SHA-256, time of writing); raises AssertionError for whatever a
    kill may not cost"""
    now = {}
    for site in SITES:
        folder = out/site
        if not (folder/'manifest.json').exists(): listed = set()
        else:
            s = ActivationStore(folder, growing=True)
            assert not s.verify(), f'{site}: listed, but damaged or missing: {s.verify()}'
            listed = {o['file'] for o in s.manifest['shards']}
            now |= {
                folder / o['file']: (o['sha256'], (folder / o['file']).stat().st_mtime_ns) for o in s.manifest['shards']
            }
        files = {o.name for o in folder.glob('*')} | {o.name for o in folder.glob('.*')}
        stray = {f for f in files - listed - {'manifest.json'} if not half_written(f)}
        # at most the shard in flight, whole but not yet listed
        assert len(stray) <= 1 and all(f.startswith('shard-') for f in stray), f'{site}: strays {sorted(stray)}'
    half = [o for o in out.glob('*/.*') if half_written(o.name)]
    assert len(half) <= 1, f'left half written, and not removed by the next run: {half}'
    lost = [str(f) for f in before if now.get(f) != before[f]]
    assert not lost, f'finished before, and lost or written again: {lost}'
    return now

def kill_test(folder, times, seed=0, say=print):
    """Number of kills after which something was wrong, or 1 if the final stores differ from those of a harvest left
    alone"""
    rng, wrong, kills, before = random.Random(seed), 0, 0, {}
    given()
    t = time.monotonic()
    p = start(folder/'alone')
    finish(p)
    whole = time.monotonic() - t
    while kills < times:
        p, after = start(folder/'killed'), rng.uniform(0, .25)*whole
        p.join(after)
        if p.exitcode is not None:
            finish(p)
            look(folder/'killed', before)
            shutil.rmtree(folder/'killed')
            before = {}
            say('   the harvest ended before it was killed: it starts again from nothing')
            continue
        os.kill(p.pid, signal.SIGKILL)
        p.join()
        kills += 1
        half = [o.name for o in folder.glob('killed/*/.*') if half_written(o.name)]
        try: now, what = look(folder/'killed', before), 'all intact'
        except (AssertionError, UserError) as e: wrong, what = wrong+1, f'WRONG: {e}'
        else: before = now
        say(
            f'{kills}: SIGKILL after {after:.2f} s of {whole:.2f}: {len(before)} shards listed, {what}, {len(half)} half written'
        )
    finish(start(folder/'killed'))
    look(folder/'killed', before)
    names = [
        {str(o.relative_to(folder / k)): sha256(o) for o in sorted((folder / k).rglob('*')) if o.is_file()}
        for k in ('alone', 'killed')
    ]
    say(
        f'{kills} kills, {wrong} wrong; the final store of {len(names[0])} files is {"identical" if names[0] == names[1] else "DIFFERENT"}'
    )
    return wrong or int(names[0] != names[1])

def named(folder):
    "The file that reading the store in `folder` complains of, or ''"
    try: bad = ActivationStore(folder).verify()
    except UserError as e: return 'manifest.json' if str(folder/'manifest.json') in str(e) else ''
    try: ActivationStore(folder).load()
    except UserError as e: return ' '.join(bad) if bad and bad[0] in str(e) else ''
    return ''

def flip_test(folder, times, seed=0, say=print):
    "Number of flipped bytes that were not found, or named wrongly; a third of them in the manifests"
    rng, missed = random.Random(seed), 0
    for i in range(times):
        site = folder/rng.choice(SITES)
        path = site/'manifest.json' if i % 3 == 2 else rng.choice(sorted(site.glob('shard-*')))
        was = path.read_bytes()
        at, bits = rng.randrange(len(was)), rng.randrange(1, 256)
        path.write_bytes(was[:at] + bytes([was[at] ^ bits]) + was[at+1:])
        found = named(site) == path.name
        missed += not found
        say(f'{i+1}: byte {at} of {len(was)} in {site.name}/{path.name}: {"found and named" if found else "MISSED"}')
        path.write_bytes(was)
    clean = [named(folder/s) for s in SITES] == ['', '']
    say(
        f'{times} flips, {missed} missed; put back, {"nothing is said to be wrong" if clean else "SOMETHING is still said to be wrong"}'
    )
    return missed or int(not clean)

if __name__ == '__main__':
    args = [int(v) for v in sys.argv[1:]]
    kills, flips, seed = args + [20, None, 0][len(args):]
    flips = kills if flips is None else flips
    with tempfile.TemporaryDirectory() as d:
        bad = kill_test(Path(d), kills, seed) + flip_test(Path(d) / 'alone', flips, seed)
    sys.exit(bad > 0)
