"""From the Hub and to it, against a server on this machine: only the files that are needed, interrupted and repeated.

What the server answers is what huggingface_hub 2.4.0 asks when hf_xet is not used: create a repository or a branch, list a
folder, resolve a file (HEAD and GET with ranges), validate a card, preupload, the LFS batch, PUT of a large file, commit.
Every client runs in a process of its own, with HF_ENDPOINT set before the import."""
import base64, hashlib, json, os, re, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote
import pytest, torch
from jumprelu_sae.core import Scaler
from jumprelu_sae.formats import write_gemma_scope
from jumprelu_sae.sae import SAEConfig, make_sae

root = Path(__file__).parent.parent
COMMIT = re.compile(r'[0-9a-f]{40}')
LARGE = ('.safetensors', '.npz', '.pt')  # what goes by LFS

class Hub:
    "Repositories in memory, and what to break"
    def __init__(self):
        self.repos, self.lfs, self.requests, self.breaks, self.broken = {}, {}, [], [], 0
        self.stalled = threading.Event()

    def put(self, repo, files, branch='main'):
        "A commit: files added to a branch; its name follows from all of its content"
        r = self.repos.setdefault(repo, dict(branches={}, commits={}))
        now = r['commits'].get(r['branches'].get(branch), {}) | files
        sha = hashlib.sha1(repr(sorted((k, hashlib.sha1(v).hexdigest()) for k, v in now.items())).encode()).hexdigest()
        r['commits'][sha], r['branches'][branch] = now, sha
        return sha

    def find(self, repo, revision):
        "Commit and files, or None"
        r = self.repos.get(repo)
        if r is None: return None
        sha = r['branches'].get(revision, revision)
        return (sha, r['commits'][sha]) if sha in r['commits'] else None

    def should_break(self, what):
        "'cut', 'stall' or 'refuse' if this request is to be broken now"
        for how, pattern in self.breaks:
            if re.search(pattern, what):
                self.broken += 1
                return how

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass

    def answer(self, code=200, body=b'', length=None, **headers):
        body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        self.send_response(code)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def body(self): return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    def missing(self, what, text='not found'): self.answer(404, dict(error=text), X_Error_Code=what, X_Error_Message=text)

    def do_GET(self):
        hub, path = self.server.hub, unquote(self.path.partition('?')[0])
        hub.requests.append((self.command, path))
        if m := re.fullmatch(r'/([\w.-]+/[\w.-]+)/resolve/([^/]+|refs/pr/\d+)/(.+)', path): return self.resolve(*m.groups())
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/tree/([^/]+)(?:/(.*))?', path): return self.tree(*m.groups())
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)(?:/revision/(.+))?', path):
            found = hub.find(m[1], m[2] or 'main')
            return self.answer(body=dict(id=m[1], sha=found[0], siblings=[], tags=[])) if found else self.missing('RepoNotFound')
        return self.missing('EntryNotFound')
    do_HEAD = do_GET

    def tree(self, repo, revision, path):
        if repo == 'a/gated': return self.answer(403, dict(error='gated'), X_Error_Code='GatedRepo', X_Error_Message='Access to model a/gated is restricted')
        if repo not in self.server.hub.repos: return self.missing('RepoNotFound')
        found = self.server.hub.find(repo, revision)
        if found is None: return self.missing('RevisionNotFound')
        inside = f'{path}/' if path else ''
        below = [f[len(inside):] for f in found[1] if f.startswith(inside)]
        if not below: return self.missing('EntryNotFound')
        files = [dict(type='file', oid='0'*40, size=1, path=inside + f) for f in below if '/' not in f]
        folders = [dict(type='directory', oid='0'*40, path=inside + d) for d in sorted({f.partition('/')[0] for f in below if '/' in f})]
        self.answer(body=files + folders)

    def resolve(self, repo, revision, path):
        hub = self.server.hub
        if repo not in hub.repos: return self.missing('RepoNotFound')
        found = hub.find(repo, revision)
        if found is None: return self.missing('RevisionNotFound')
        sha, files = found
        if path not in files: return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=sha)
        data = files[path]
        head = dict(ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=sha, Accept_Ranges='bytes')
        start = int((re.match(r'bytes=(\d+)-', self.headers.get('Range') or '') or [0, 0])[1])
        code = 206 if start else 200
        if start: head['Content_Range'] = f'bytes {start}-{len(data)-1}/{len(data)}'
        if self.command == 'HEAD': return self.answer(200, b'', len(data), **head)
        how = hub.should_break(f'GET {path}')
        if how is None: return self.answer(code, data[start:], **head)
        half = max(start, len(data)//2)
        self.answer(code, data[start:half], len(data) - start, **head)
        self.wfile.flush()
        if how == 'stall':
            hub.stalled.set()
            time.sleep(20)
        self.close_connection = True

    def do_PUT(self):
        hub, data = self.server.hub, self.body()
        hub.requests.append(('PUT', self.path))
        if hub.should_break('PUT lfs'): return self.answer(400, b'broken')
        oid = self.path.rpartition('/')[2]
        assert hashlib.sha256(data).hexdigest() == oid
        hub.lfs[oid] = data
        self.answer()

    def do_POST(self):
        hub, data, path = self.server.hub, self.body(), unquote(self.path.partition('?')[0])
        hub.requests.append(('POST', path))
        if path == '/api/repos/create':
            d = json.loads(data)
            repo = f"{d['organization']}/{d['name']}"
            there = repo in hub.repos
            if not there: hub.put(repo, {})
            hub.repos[repo].setdefault('visibility', d.get('visibility'))
            return self.answer(409 if there else 200, dict(url=f'http://hub/{repo}'))
        if path == '/api/validate-yaml': return self.answer(body=dict(errors=[], warnings=[]))
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/branch/(.+)', path):
            there = m[2] in hub.repos[m[1]]['branches']
            hub.repos[m[1]]['branches'].setdefault(m[2], hub.repos[m[1]]['branches']['main'])
            return self.answer(409 if there else 200, {})
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)', path): return self.preupload(m[1], m[2], json.loads(data))
        if m := re.fullmatch(r'/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch', path): return self.batch(json.loads(data))
        if m := re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)/commit/(.+)', path): return self.commit(m[1], m[2], data)
        self.missing('EntryNotFound')

    def preupload(self, repo, revision, d):
        there, out = self.server.hub.find(repo, revision)[1], []
        for f in d['files']:
            large = f['path'].endswith(LARGE)
            one = dict(path=f['path'], uploadMode='lfs' if large else 'regular', shouldIgnore=False)
            if f['path'] in there:
                v = there[f['path']]
                one['oid'] = hashlib.sha256(v).hexdigest() if large else hashlib.sha1(b'blob %d\0' % len(v) + v).hexdigest()
            out.append(one)
        self.answer(body=dict(files=out))

    def batch(self, d):
        url, out = f'http://{self.headers["Host"]}/lfs', []
        for o in d['objects']:
            have = o['oid'] in self.server.hub.lfs
            out.append(o if have else o | dict(actions=dict(upload=dict(href=f"{url}/{o['oid']}", header={}))))
        self.answer(body=dict(transfer='basic', objects=out))

    def commit(self, repo, revision, data):
        hub = self.server.hub
        if hub.should_break('POST commit'): return self.answer(500, dict(error='broken'))
        new = {}
        for line in map(json.loads, data.splitlines()):
            v = line['value']
            if line['key'] == 'file': new[v['path']] = base64.b64decode(v['content'])
            if line['key'] == 'lfsFile': new[v['path']] = hub.lfs[v['oid']]
        sha = hub.put(repo, new, revision)
        self.answer(body=dict(commitUrl=f'http://hub/{repo}/commit/{sha}', commitOid=sha, pullRequestUrl=None))

@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.hub = Hub()
    server.hub.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.hub
    server.shutdown()

def start(hub, code, tmp, **env):
    "A client in a process of its own"
    own = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp/'hf'), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1',
        HF_HUB_DOWNLOAD_TIMEOUT='5', NO_PROXY='127.0.0.1', OMP_NUM_THREADS='1', PYTHONPATH=str(root), TMPDIR=str(tmp/'tmp')) | env
    (tmp/'tmp').mkdir(exist_ok=True)
    keep = {k: v for k, v in os.environ.items() if not k.startswith('HF_') and 'proxy' not in k.lower()}
    return subprocess.Popen([sys.executable, '-c', PRELUDE + code], cwd=tmp, env=keep | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

PRELUDE = '''
import json, sys
import jumprelu_sae as js
from jumprelu_sae.core import UserError
from jumprelu_sae.interop import push, load_sae
def told(f):
    try: return f()
    except UserError as e: return f'error: {e}'
'''

def run(hub, code, tmp, **env):
    "What a client prints, which has to end well"
    p = start(hub, code, tmp, **env)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err[-3000:]
    return out.strip()

def small_sae(arch='jumprelu', d_in=8, d_sae=16, seed=0, **said):
    g = torch.Generator().manual_seed(seed)
    sae = make_sae(SAEConfig(arch, d_in, d_sae), seed)
    with torch.no_grad():
        sae.b_enc += torch.randn(d_sae, generator=g)*.1
        if arch == 'jumprelu': sae.log_threshold = None if False else sae.log_threshold if hasattr(sae, 'log_threshold') else None
    meta = dict(model_name='tiny-gemma2', hook_name='blocks.2.hook_resid_post', hf_hook_name='model.layers.2.output', prepend_bos=True, dataset_path='generated', context_size=32)
    return sae.finish(Scaler(torch.zeros(d_in), 2.), meta | said)

def files_of(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}

def gets(hub, after=0): return [p.rpartition('/')[2] for m, p in hub.requests[after:] if m == 'GET' and '/resolve/' in p]
