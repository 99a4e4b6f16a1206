"""Formulas as MathML, made while the site is built: no script, no font and no server when it is read."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

WARNINGS = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    put(translator, node, as_block=False)


def block(translator: HTML5Translator, node: nodes.math_block) -> None:
    put(translator, node, as_block=True)


def put(translator: HTML5Translator, node: nodes.Element, *, as_block: bool) -> None:
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        WARNINGS.warning("a formula that is no MathML, %s: %s", error, node.astext(), location=node)
    raise nodes.SkipNode
