"Settings of the site; `docs/pages.py` puts its pages together."

import configparser
import html
from pathlib import Path

here = Path(__file__).resolve().parent
_settings = configparser.ConfigParser(delimiters=['='])
_settings.read(here.parent / 'settings.ini', encoding='utf-8')

project = 'jumprelu_sae'
author = _settings['DEFAULT']['author']
copyright = _settings['DEFAULT']['copyright']
version = release = _settings['DEFAULT']['version']

extensions = ['myst_nb', 'autodoc2', 'sphinx_copybutton']
templates_path = []
exclude_patterns = ['apidocs/jumprelu_sae/jumprelu_sae.md']  # the page api lists the modules, in the book's order

# Notebooks: shown as they are committed, never run; a widget would load its script from elsewhere, so none is shown
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'
nb_ipywidgets_js = {}
nb_number_source_lines = False
myst_enable_extensions = ['dollarmath', 'amsmath', 'fieldlist']
myst_heading_anchors = 4
myst_dmath_double_inline = True

# Reference: read from the text of the modules, in which docs/pages.py has put the comments into the docstrings
autodoc2_packages = ['../lib/jumprelu_sae']
autodoc2_render_plugin = 'myst'
autodoc2_docstring_parser_regexes = [(r'.*', 'myst')]
autodoc2_module_all_regexes = [r'jumprelu_sae\..*']
autodoc2_hidden_objects = {'private', 'dunder', 'inherited', 'undoc'}
autodoc2_output_dir = 'apidocs'
autodoc2_index_template = None


html_theme = 'pydata_sphinx_theme'
html_title = 'jumprelu_sae'
html_static_path = ['_static']
html_css_files = ['katex/katex.min.css', 'site.css']
html_js_files = ['katex/katex.min.js', 'math.js']
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # the summary is fetched, which a page opened from the disk may not do
html_theme_options = {
    'logo': {'text': 'jumprelu_sae'},
    'navbar_align': 'left',
    'navbar_persistent': ['search-button'],
    'show_toc_level': 2,
    'navigation_with_keys': False,
    'footer_start': ['copyright'],
    'footer_end': [],
    'back_to_top_button': True,
}
html_sidebars = {'index': [], 'CHANGELOG': [], 'CONTRIBUTING': []}


def math(inline):
    "A visitor that leaves the TeX of an equation in the page, for math.js"

    def visit(self, node):
        import docutils.nodes

        tag = 'span' if inline else 'div'
        self.body.append(f'<{tag} class="math notranslate nohighlight">{html.escape(node.astext())}</{tag}>')
        raise docutils.nodes.SkipNode

    return visit


def setup(app):
    app.add_html_math_renderer('katex', (math(True), None), (math(False), None))
    app.config.html_math_renderer_name = 'katex'
