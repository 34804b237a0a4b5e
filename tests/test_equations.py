"""Model text is hostile until proven otherwise: 100,000 fuzzed annotations, and a differential test against Python's own grammar."""
import ast, operator, random, time
from fractions import Fraction
import pytest
from mathrepro.equations import (CHAINED, LENIENT, OFFICIAL, PLAIN, annotation_spans, annotations, canonical_equation, check,
                                 evaluate_arithmetic, parse_annotations)

def fuzzed(n, seed):
    "Strings of four kinds: soup of operators, mutated annotations, unicode noise, deep or long repetition."
    rng = random.Random(seed)
    soup, noise = "0123456789+-*/().= %eE,_$x<>|^ \t", "٣½²٫\u2212\u00a0\u200b×÷=𝟙é\n\x00\ud800"
    seeds = ["16-3-4=9", "50/60=0.8333", "2**3=8", "(1+2)*3=9", "10//3=3", "1,000+1=1001", "2+3=5=9", "1e3*2=2000", "-5--3=-2", "10%*50=5"]
    for _ in range(n):
        kind = rng.random()
        if kind < 0.45: yield "".join(rng.choices(soup, k=rng.randint(0, 40)))
        elif kind < 0.85:
            text = list(rng.choice(seeds))
            for _ in range(rng.randint(1, 4)): text[rng.randrange(len(text))] = rng.choice(soup + "**//((")
            yield "".join(text)
        elif kind < 0.97: yield "".join(rng.choices(soup + noise, k=rng.randint(0, 60)))
        else: yield rng.choice(["9**", "(", "-", "1+", "((1", "9", "2=", "<<", "1e9*", "9**9//", ".", "0."]) * rng.randint(1, 400) + "1=1"

def test_fuzz_100_000_strings_is_safe_and_fast():
    start, slowest = time.perf_counter(), 0.0
    for i, text in enumerate(fuzzed(100_000, seed=1)):
        began = time.perf_counter()
        verdict = check(text, chained=CHAINED[i % 3], dialect=(OFFICIAL, PLAIN, LENIENT)[i % 3])
        value = evaluate_arithmetic(text, exact=i % 2 == 0)
        parse_annotations(f"<<{text}>>"); canonical_equation(text)
        slowest = max(slowest, time.perf_counter() - began)
        assert isinstance(verdict, bool) and (value is None or isinstance(value, (int, float, Fraction)))
    assert time.perf_counter() - start < 20 and slowest < 1

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
             ast.Mod: operator.mod, ast.Pow: operator.pow}

def by_python_grammar(node):
    "Value of a parsed expression; LookupError for anything that is no arithmetic, OverflowError for a power that is too large for us."
    if isinstance(node, ast.Constant) and type(node.value) in (int, float): return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub): return -by_python_grammar(node.operand)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd): return +by_python_grammar(node.operand)
    if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATORS: raise LookupError(type(node))
    a, b = by_python_grammar(node.left), by_python_grammar(node.right)
    if isinstance(node.op, ast.Pow) and isinstance(a, int) and isinstance(b, int) and max(1, a.bit_length()) * abs(b) > 4096: raise OverflowError
    value = OPERATORS[type(node.op)](a, b)
    if isinstance(value, complex): raise OverflowError
    return value

def test_same_values_as_python():
    rng, compared = random.Random(2), 0
    for _ in range(30_000):
        text = "".join(rng.choices(["1", "2", "3.5", "0.25", "10", "0", "+", "-", "*", "/", "**", "//", "%", "(", ")", " "], k=rng.randint(1, 12)))
        try: expected = by_python_grammar(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, LookupError, ArithmeticError): expected = None
        if isinstance(expected, float) and expected != expected: continue
        if expected is not None and abs(expected) == float("inf"): expected = None
        got = evaluate_arithmetic(text)
        if expected is None: assert got is None, (text, got)
        else: compared += 1; assert got == expected and type(got) is type(expected), (text, got, expected)
    assert compared > 1500

@pytest.mark.parametrize("text", ["<" * 200_000, "<<" * 100_000, "<<1=1>>" * 30_000, "<<" + "9" * 200_000 + "=9>>", "<<\n" * 70_000 + ">>", ">" * 200_000])
def test_finding_annotations_is_linear(text):
    start = time.perf_counter()
    list(annotation_spans(text)); [check(a) for a in annotations(text)]
    assert time.perf_counter() - start < 2
