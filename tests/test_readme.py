"README.md is what tools/make_readme.py writes from nbs/index.ipynb."
import re, sys
from pathlib import Path
root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tools'))
from make_readme import from_root, readme

def test_readme_is_index(): assert (root/'README.md').read_text(encoding='utf-8') == readme(root), 'run make readme'

def test_links_go_from_the_root():
    md = '![f](images/f.png) [c](../CITATION.cff) [a](https://a.org/x) [h](#use) <img src="images/g.png">'
    assert (
        from_root(md)
        == '![f](nbs/images/f.png) [c](CITATION.cff) [a](https://a.org/x) [h](#use) <img src="nbs/images/g.png">'
    )

def test_links_lead_somewhere():
    md = (root/'README.md').read_text(encoding='utf-8')
    links = re.findall(r'(?:\]\(|\b(?:src|href)=")(?![a-z]+:|#)([^)"\s#]+)', md)
    assert not [l for l in links if not (root/l).exists()]
