#!/usr/bin/env python3
"""Writes chat_template_cases.json: what transformers renders.

    pip install transformers jinja2
    python make_chat_template_cases.py --templates DIR --out chat_template_cases.json

DIR holds chat templates of published models as NAME.jinja: those of MODELS, whose text is written, too (Qwen2.5 and
SmolLM2: Apache-2.0; DeepSeek-R1, llama.cpp, Phi-4: MIT), and NOT_INCLUDED, of whose renderings only a hash is. A case
has a name, what was rendered (template, or the name of a model; messages, with the arguments of tool calls as JSON text;
tools and variables as JSON text; date; add_generation_prompt; continue_final_message) and rendered, fnv1a or error;
bos_token and eos_token are <s> and </s>. What cannot be rendered with the arguments
of tool calls as mappings and absent contents as none is rendered with texts for them. strftime_now is there with a date only, as in our engine.

--fuzz N writes N random templates instead, for a longer comparison by hand.
"""

import argparse
import datetime
import json
import pathlib
import random
from unittest import mock

from transformers.utils import chat_template_utils

MODELS = ["Qwen-Qwen2.5-7B-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.orig", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.orig",
          "llama-cpp-deepseek-r1", "phi-4", "phi-4-mini-instruct", "phi-4-mini-reasoning", "phi-4-reasoning", "smollm2-135m-instruct"]
NOT_INCLUDED = "meta-llama-Llama-3.2-3B-Instruct"

CHAT = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " 1 + 1?\n"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nIt is 2."}, {"role": "user", "content": "Grüße, 世界 🙂"}]
CHATS = [CHAT, CHAT[1:], CHAT[1:2], CHAT[:1]]

SNIPPETS = [
    # Output and literals.
    "{{ 'a' }}{{ \"b'c\" }}{{ 'it\\'s \\n \\t \\\\ \\x41 \\u00e9 \\q \\101' }}", "{{ 1 }} {{ -7 }} {{ true }} {{ False }} {{ none }}",
    "{{ 'a' 'b' }}", "{{ missing }}|{{ missing.x is defined if false }}|", "{{ 'a\r\nb' }}\r\nc\rd\n", "x\n", "x\n\n", "",
    # Operators and precedence.
    "{{ 1 + 2 * 3 - 4 }}", "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 // -2 }} {{ 7 % -2 }}",
    "{{ 'a' ~ 1 + 2 ~ 'b' }}", "{{ 'a' ~ none ~ true ~ missing }}", "{{ 1 < 2 and 2 <= 2 and 3 > 2 and 3 >= 3 }}",
    "{{ 'a' < 'b' }} {{ 'é' > 'z' }}", "{{ not 1 == 2 }}", "{{ not true or true }}", "{{ 1 == 1 if false else 'x' }}",
    "{{ true == 1 }} {{ '1' == 1 }} {{ none == none }} {{ missing == missing }} {{ missing == none }}",
    "{{ 'b' in 'abc' }} {{ 'x' not in 'abc' }} {{ 1 in [1, 2] }} {{ 'role' in messages[0] }} {{ 1 in missing }}",
    "{{ '' or 'x' }} {{ 'y' and 0 }} {{ [] or 'empty' }}", "{{ 'a' if 1 else 'b' }} {{ 'a' if 0 else 'b' }} [{{ 'a' if 0 }}]",
    "{{ 'a' if 0 else 'b' if 0 else 'c' }}", "{{ (1 + 2) * 3 }}",
    "{{ -1 | string }}{{ 'x' | length + 1 }}", "{{ 'a' + 'b' | trim + 'c' }}", "{{ [1] + [2] | length if false else 'x' }}",
    # Subscripts and slices.
    "{{ messages[0]['role'] }} {{ messages[0].role }} {{ messages[-1].role }} {{ messages[99] }}|{{ messages[0].nope }}|",
    "{{ 'grüße'[2] }} {{ 'grüße'[-1] }} {{ 'grüße'[1:4] }} {{ 'grüße'[::-1] }} {{ 'abcdef'[1::2] }} {{ 'abc'[5] }}|",
    "{{ 'abc'[:-1] }} {{ 'abc'[-99:99] }} {{ 'abc'[2:1] }} {{ 'abcdef'[4:1:-2] }} {{ 'abc'[:none] }}",
    "{% for m in messages[1:] %}{{ m.role }},{% endfor %}", "{% for m in messages[::-1] %}{{ m.role }},{% endfor %}",
    "{{ [1, 2, 3][1] }}{{ [1, 2, 3,][-1] }}{{ ([[1], [2]][1])[0] }}",
    # Tests.
    "{{ x is defined }} {{ messages is defined }} {{ tools is none }} {{ tools is not none }} {{ x is not defined }}",
    "{{ raise_exception is defined }} {{ strftime_now is defined }} {{ namespace is undefined }}",
    "{{ 'a' is string }} {{ 1 is string }} {{ messages is iterable }} {{ messages is sequence }} {{ messages[0] is mapping }}",
    "{{ 1 is number }} {{ true is number }} {{ true is integer }} {{ true is boolean }} {{ 1 is boolean }} {{ none is iterable }}",
    "{{ true is true }} {{ 1 is true }} {{ false is false }} {{ missing is iterable }} {{ 1 is defined and 2 is defined }}",
    # Filters and methods.
    "[{{ '  a b \\n' | trim }}] [{{ 'xxaxx' | trim('x') }}] [{{ '\u3000a\x1c' | trim }}] {{ 5 | trim }}",
    "{{ 'grüße' | length }} {{ messages | length }} {{ messages[0] | count }} {{ missing | length }}",
    "{{ 'abc' | first }}{{ 'abc' | last }}{{ [1, 2] | first }}{{ [1, 2] | last }}{{ [] | first }}",
    "{{ missing | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }} {{ none | d('x') }} {{ 0 | d('z', boolean=true) }}",
    "{{ 'aXbX' | replace('X', '--') }} {{ 'aXb'.replace('X', '') }}", "{{ [1, 'a', none] | join(', ') }} {{ 'abc' | join('-') }}",
    "{{ messages | tojson }}", "{{ messages[:1] | tojson(indent=2) }}", "{{ [] | tojson(indent=4) }} {{ [1, [true, none]] | tojson(indent=1) }}",
    "{{ '\"\\\\ \\n\\t\\b\\f\\x01\\x7f é 🙂 </x>' | tojson }}", "{{ 'a,b,,c'.split(',') | join('|') }} {{ ''.split(',') | length }}",
    "{{ '<t>x</t>y'.split('</t>')[-1].lstrip() }}[{{ ' a '.strip() }}][{{ ' a '.rstrip() }}][{{ 'xyax'.strip('xy') }}]",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'a'.endswith('ba') }}",
    "{{ messages[0].get('role') }} {{ messages[0].get('x') }} {{ messages[0].get('x', 'y') }}", "{{ range(3) | join(',') }} {{ range(2, 5) | join }} {{ range(5, 2) | length }}",
    # Statements.
    "{% if false %}a{% elif 0 %}b{% elif '' %}c{% else %}d{% endif %}", "{% if messages %}a{% endif %}",
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }} {% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if not loop.first }}<{{ m.role }}>{{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }} {% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}empty{% endfor %}", "{% for m in missing %}x{% else %}none{% endfor %}", "{% for k in messages[0] %}{{ k }},{% endfor %}",
    "{% for a in [1, 2] %}{% for b in ['x', 'y'] %}{{ a }}{{ b }}{{ loop.index }} {% endfor %}{{ loop.index }};{% endfor %}",
    "{% set x = 1 %}{% for m in messages %}{{ x }}{% set x = x + 1 %}{{ x }} {% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}", "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}{{ ns.zz }}",
    "{% set messages = messages[1:] %}{{ messages | length }}", "{% for loop_item in messages %}{% set y = loop_item.role %}{% endfor %}[{{ y }}]",
    "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}",
    # Whitespace control.
    "a\n  {% if true %}\n  b\n  {% endif %}\n c", "a \n {%- if true -%} \n b \n {%- endif -%} \n c", "  {% if true %}x{% endif %}  \n y", "a  {% if true %}  b  {% endif %}  c",
    "a\n\t{%+ if true %}\nb{% endif +%}\nc", "{# c #}\nx {# d #}\n  {# e #}\n y {#- f -#} \n z", "  {{ 'v' }}\n  {{- 'w' -}}\n  x", "{% set x = 1 %}\n\n\n{{ x }}\n{% set y = 2 %} \n{{ y }}\n\n",
    "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n        {{- m.content }}\n    {%- endif %}\n{%- endfor %}\n", "a\u2003{%- if true %}b{% endif -%}\u2003c", "a\n \u2003{% if true %}b{% endif %}",
    "{% if true -%}\n\n  x{% endif %}", "{ % } %} }} #} {", "{{ '}}' }}{{ '%}' }}{# {{ #}",
    # Errors that Jinja raises too.
    "{{ raise_exception('no ' ~ 'way') }}", "{% if messages[0].role == 'user' %}{{ raise_exception('user') }}{% endif %}ok", "{{ missing.x.y }}", "{{ missing + 'a' }}", "{{ 'a' + 1 }}", "{{ 1 // 0 }}",
    "{{ messages[99]['role'] }}", "{% for x in 5 %}{% endfor %}", "{{ none.x.y }}", "{% if %}", "{% endif %}", "{{ 1 + }}", "{% for x %}{% endfor %}", "{{ 'a' }", "{% if true %}", "{# open", "{{ 'open }}",
    "{{ missing | tojson }}", "{{ 5 | length }}", "{{ 'a' < 1 }}", "{{ 1 in 5 }}", "{{ [1][::0] }}",
]

# Constructs that templates with tools use; VARIABLES are theirs.
MORE_SNIPPETS = [
    # Numbers.
    "{{ 1.5 }} {{ 1.0 }} {{ 1e3 }} {{ 1e16 }} {{ 1.5e-7 }} {{ 0.1 + 0.2 }} {{ 7 / 2 }} {{ 6 / 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2.5 // 1 }} {{ -7.5 % 2 }}",
    "{{ 1_000 }} {{ 0x1F }} {{ 0o17 }} {{ 0b101 }} {{ -2 ** 2 }} {{ 10 % 4 * 2 }} {{ 1 == 1.0 }} {{ 1.5 > 1 }} {{ f }} {{ big }} {{ e }} {{ -f }} {{ +f }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1 != 2 }} {{ 1 < 2 > 0 in [true] }}", "{{ 1 / 0 }}", "{{ 1.0 // 0 }}", "{{ 'a' * 3 }} {{ 2 * [1] }} {{ 'a' * -1 }}|",
    # Literals.
    "{{ {'a': 1, 'b': [2, {'c': none}]} }} {{ {} }} {{ (1,) }} {{ () }} {{ (1, 'a') }} {{ 1, 2 }} {{ {'a': 1,}['a'] }} {{ {1: 'x', none: 'y'}[1] }}",
    "{{ ['it\\'s', 'q\"', 'b\\'\"', '\\n\\t\\\\', 'é🙂\\u200b\\x07\\u2028'] }} {{ d }} {{ l }} {{ [1.0, true, none] }}", "{{ {'}}': '%}'} }}", "{{ dict(a=1, b='x') }} {{ dict([('a', 1)]) }} {{ dict({'a': 1}, b=2).b }}",
    "{{ [missing] }}", "{{ d == {'b': 2, 'a': 1, 'C': [1, 2.5, none, true, 'é']} }} {{ [1, 2] == (1, 2) }} {{ (1, 2) < (1, 3) }} {{ [1, 'a'] < [2] }}",
    # Statements.
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ b }}{{ a }}", "{% set (a, b) = [3, 4] %}{{ a }}{{ b }}", "{% set x %}a{{ 1 }}b{% endset %}[{{ x }}]", "{% set x | upper | replace('A', 'z') %}ab{% endset %}[{{ x }}]",
    "{% set ns = namespace(x=1) %}{% set ns.y %}t{% endset %}{{ ns.x }}{{ ns.y }}{{ ns['x'] }}", "{% set ns = namespace({'x': 1}, z=2) %}{{ ns.x + ns.z }}", "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% filter upper %}a{{ 'b' }}{% endfilter %}", "{% filter trim | upper %}  a {% endfilter %}|", "{% with a=1, b=2 %}{{ a + b }}{% endwith %}{{ a }}", "{% with %}{% set q = 1 %}{% endwith %}{{ q }}|",
    "a{% raw %} {{ x }} {% if %} {% endraw %}b", "a {%- raw -%} x {%- endraw -%} b", "{% raw %}\n x\n{% endraw %}\ny", "{% generation %}a{{ 1 }}{% set q = 2 %}{% endgeneration %}{{ q }}|",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}|{% for i in [1] %}{{ i }}{% else %}e{% endfor %}",
    "{% for i in [1, 2] %}{% for j in [1, 2] %}{% if j == 2 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{{ loop.index }};{% endfor %}",
    "{% for c in 'aé🙂' %}{{ c }}{{ loop.index }},{% endfor %}", "{% for a in 1, 2, 3 %}{{ a }}{% endfor %}", "{% for i in [1, 2, 3, 4] %}{{ loop.cycle('a', 'b') }}{{ loop.changed(i // 2) }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for i in l if i is string %}{{ loop.last }}{{ i }}{% endfor %}", "{% if 1, 2 %}t{% endif %}", "{% break %}", "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}",
    # Macros.
    "{% macro f(a, b=2, c=none) %}<{{ a }}{{ b }}{{ c }}>{% endmacro %}{{ f(1) }}{{ f(1, c=3) }}{{ f(b=0, a=9) }}{{ f() }}", "{% macro f(a, b=a ~ 'x') %}{{ b }}{% endmacro %}{{ f(1) | upper }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% set y = 1 %}{% macro f() %}{{ y }}{% set y = 5 %}{% endmacro %}{% set y = 2 %}{{ f() }}{{ y }}", "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(z=2) }}", "{% macro f() -%}  x  {%- endmacro %}[{{ f() }}]", "{% macro f() %}x{% endmacro %}{{ f is callable }} {{ f() is string }} {{ f is defined }} {% if f %}y{% endif %}", "{% for i in [1, 2] %}{% macro g() %}{{ i }}{% endmacro %}{{ g() }}{% endfor %}",
    "{{ missing() }}", "{{ 1() }}", "{% set ns = namespace(t='') %}{% macro add(x) %}{% set ns.t = ns.t + x %}{% endmacro %}{{ add('a') }}{{ add('b') }}{{ ns.t }}",
    # Filters of lists.
    "{{ tl | map(attribute='n') | list }} {{ tl | map(attribute='z', default='-') | join(',') }} {{ ['a', 'b'] | map('upper') | list }} {{ [1, 2] | map('string') | join }} {{ tl | map(attribute='sub.0') | list }}",
    "{{ [1, 0, 'a', ''] | select | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [1, 2, 3] | reject('equalto', 2) | list }} {{ [1, 2, 3] | select('>', 1) | list }} {{ ['a', 1] | select('string') | first }}",
    "{{ tl | selectattr('n', 'equalto', 'b') | list | length }} {{ tl | selectattr('k') | map(attribute='n') | join }} {{ tl | rejectattr('k', 'defined') | map(attribute='n') | join }} {{ tl | selectattr('n', 'in', ['a', 'c']) | map(attribute='n') | list }}",
    "{{ tools | map(attribute='x') | list }}", "{{ [1] | map('nope') | list }}", "{{ [1] | select('nope') | list }}", "{{ [1] | map('upper') | tojson }}", "{{ [1] | map('upper') | length }}", "{% set g = [1, 2] | map('string') %}{{ g | list }}{{ g | list }}{{ g | first }}|",
    "{{ d | dictsort }} {{ d | dictsort(true) }} {{ {'b': 1, 'a': 2} | dictsort(by='value', reverse=true) }}", "{{ d | items | list }} {{ missing | items | list }} {{ d.keys() | list }} {{ d.values() | list }}", "{{ [1] | items | list }}",
    "{{ [3, 1, 2] | sort }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A', 'c'] | sort(case_sensitive=true, reverse=true) }} {{ tl | sort(attribute='n', reverse=true) | map(attribute='n') | join }} {{ [1, 'a'] | sort }}",
    "{{ [1, 2, 1, 'a', 'A'] | unique | list }} {{ [1, 2] | reverse | list }} {{ 'abc' | reverse }} {{ 'abc' | list }} {{ [1, 2.5] | sum }} {{ tl | sum(attribute='v') }} {{ [3, 1] | min }} {{ ['a', 'B'] | max }} {{ [] | max }}|",
    "{{ [1, 2, 3] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3] | slice(2) | list }} {{ tl | groupby('k') | map('first') | list }} {{ tl | join(',', attribute='n') }}", "{{ d | first }} {{ d | last }} {{ d | list }} {{ d | length }} {{ d | join }}",
    # Filters of strings and numbers.
    "{{ 'straße ÉA ǆ' | upper }} {{ 'ÀÉ ΑΣ İ' | lower }} {{ 'hello wORLD-x (y' | title }} {{ 'hELLO w' | capitalize }} {{ 5 | upper }} {{ none | lower }}", "{{ '42' | int }} {{ '4.7' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.9 | int }} {{ '0x1f' | int(base=16) }} {{ ' 1_0 ' | int }} {{ true | int }} {{ none | int }}",
    "{{ '1.5' | float }} {{ 'x' | float }} {{ 'x' | float(2.5) }} {{ 3 | float }} {{ '1e3' | float }}", "{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42 | round }} {{ 42.1 | round(0, 'ceil') }} {{ 42.19 | round(1, 'floor') }} {{ 2.5 | round | int }} {{ -3 | abs }} {{ -1.5 | abs }}",
    "{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent('> ', blank=true) }}|{{ 'a\\n' | indent(2) }}|", "{{ 'aaa' | replace('a', 'b', 2) }} {{ 'abc' | replace('', '-') }} {{ 5 | replace(5, 6) }} {{ 'abc'.replace('', '-', 2) }}",
    "{{ d | tojson }} {{ d | tojson(indent=2) }} {{ l | tojson(separators=(',', ':')) }} {{ 'é\u2028</>' | tojson }} {{ 'é🙂' | tojson(ensure_ascii=true) }} {{ d | tojson(sort_keys=true) }} {{ big | tojson }} {{ e | tojson }} {{ (1, 2) | tojson }}", "{{ {1: 2, none: 3, true: 4, 1.5: 6} | tojson }} {{ {} | tojson(indent=2) }} {{ [[]] | tojson(indent=1) }}",
    "{{ '%s-%d-%05.2f-%x-%%' | format('a', 3, 2.5, 255) }} {{ '%s' % 'x' }} {{ '%(a)s' % d }} {{ '%-4s|%4s|' % ('a', 'b') }} {{ '%r' % 'x' }}", "{{ '%d' % 'x' }}", "{{ '%s %s' % 'x' }}", "{{ 'a' | wordcount }} {{ 'foo bar baz' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true, '-', 0) }}",
    "{{ '<a>&\"\\'' | e }} {{ '<a>' | escape }} {{ '<a>' | safe }} {{ ('<a>' | safe) + '<b>' }} {{ '<c>' + ('<a>' | safe | trim) }} {{ ('<a>' | safe) ~ '<b>' }} {{ ('<' | e | e) }}", "{{ none | default('x') }} {{ missing | default(1) + 1 }} {{ d.nope | default('y', true) }}", "{{ 5 | indent }}", "{{ 'a' | int | float | string | length }}",
    "{{ x | nope }}", "{{ x is nope }}", "{% if false %}{{ x | nope }}{{ x is nope }}{% endif %}ok", "{% if true %}{{ x | nope }}{% endif %}",
    # Tests.
    "{{ 3 is odd }} {{ 3 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 1 is eq 1 }} {{ 1 is equalto(2) }} {{ 1 is ne 2 }} {{ 2 is gt 1 }} {{ 2 is lt 1 }} {{ 2 is ge 2 }} {{ 2 is le 1 }} {{ 1 is in [1] }} {{ 'a' is in('abc') }}",
    "{{ 1.5 is float }} {{ 1.5 is number }} {{ 1 is float }} {{ 1 is sameas 1 if false else none is sameas none }} {{ 'a' is lower }} {{ 'A' is upper }} {{ d is mapping }} {{ d is iterable }} {{ d.items() is sequence }} {{ (1, 2) is sequence }} {{ 1 is iterable }}",
    "{{ d is not mapping }} {{ 'upper' is filter }} {{ 'x' is filter }} {{ 'odd' is test }} {{ big is integer }} {{ range is callable }} {{ l is string or l is sequence }} {{ x is defined and x.y }} {{ d.a is defined }} {{ d.q is undefined }}",
    # Methods.
    "{{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b c '.split(none, 1) }} {{ 'a b c'.rsplit(maxsplit=1) }} {{ 'a\\r\\nb\\x0bc\\n'.splitlines() }} {{ 'a\\nb'.splitlines(true) }}",
    "{{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith(('x', 'b')) }} {{ 'abc'.startswith('') }} {{ 'xxaxx'.lstrip('x') }} {{ 'xxaxx'.rstrip('x') }} {{ 'éaé'.strip('é') }} {{ 'a\u3000'.rstrip() }}|",
    "{{ 'Ab'.upper() }}{{ 'Ab'.lower() }}{{ 'they\\'re bill'.title() }}{{ 'aB c'.capitalize() }}{{ 'aB'.swapcase() }} {{ 'ababa'.count('ba') }} {{ 'éab'.find('b') }} {{ 'ab'.find('z') }} {{ 'abab'.rfind('ab') }} {{ 'ab'.index('b') }}",
    "{{ ','.join(['a', 'b']) }} {{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'ab'.partition('z') }} {{ 'abc'.removeprefix('ab') }} {{ 'abc'.removesuffix('bc') }} {{ '5'.zfill(3) }} {{ '-5'.zfill(4) }} {{ 'a'.center(4, '*') }} {{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}",
    "{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ 'a'.islower() }} {{ 'A'.isupper() }} {{ ''.isdigit() }} {{ '{} {} {{}}'.format(1, 'x') }} {{ '{1} {0} {k}'.format(1, 2, k='v') }}",
    "{{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d['a'] }} {{ d['z'] }}| {{ d.z }}| {{ l.index(2.5) }} {{ l.count(true) }} {{ d.copy() == d }} {{ d.C[1:3] }} {{ l[::-1] }} {{ (1, 2, 3)[1:] }} {{ range(9)[2:4] | list }} {{ range(5, 0, -2) | list }}",
    "{{ l.append(1) }}", "{{ d.update({'x': 1}) }}", "{{ d.pop('a') }}", "{{ 'ab'.index('z') }}", "{{ 'a'.split('') }}", "{{ 'a'.nope() }}", "{{ 'a'.join([1]) }}", "{{ none.strip() }}", "{{ d.get([]) }}", "{{ 'a'.replace('a') }}",
    "{{ 'abcdef'[-2:] }} {{ 'abcdef'[::2] }} {{ 'abcdef'[5:1:-2] }} {{ l[-1] }} {{ l[10] }}| {{ 'é🙂x'[1] }} {{ none[1:] }}", "{{ l.0 }} {{ messages.0.role }} {{ (d.C).3 }}", "{{ 1 in d }} {{ 'a' in d }} {{ 'a' not in d.keys() }} {{ ('a', 1) in d.items() }} {{ none in [none] }}", "{{ 1 in 'a' }}",
    "{{ strftime_now('%d %b %Y %A %B %j %y-%m-%d %H:%M') }}", "{{ raise_exception('stop') }}", "{{ namespace is defined }} {{ strftime_now is defined }} {{ raise_exception is callable }} {{ joiner2 is defined }}",
    "{{ tojson }}|{{ x.y }}", "{{ messages[0].content[0] }}", "{{ (messages | last).role }} {{ messages | map(attribute='role') | unique | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
]
VARIABLES = ('{"d": {"b": 2, "a": 1, "C": [1, 2.5, null, true, "é"]}, "l": [1, 2.5, "x", true, null], "f": 2.50, "e": 1e22, "big": 123456789012345678901, '
             '"tl": [{"n": "b", "k": 1, "v": 1, "sub": [1]}, {"n": "a", "k": 0, "v": 2, "sub": [2]}, {"n": "c", "v": 0.5, "k": 1, "sub": [3]}]}')

WEATHER = ('{"type": "function", "function": {"name": "get_weather", "description": "The weather é <b>", "parameters": {"type": "object", "properties": '
           '{"city": {"type": "string", "enum": ["Köln", "b"]}, "n": {"type": "number", "default": 1.50}, "big": {"const": 123456789012345678901}}, "required": ["city"]}}}')
CLOCK = '{"type": "function", "function": {"name": "clock", "description": "<|im_end|> </think>", "parameters": {}}}'


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(id_, name, arguments):
    return {"type": "function", "id": id_, "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = assistant(None, tool_calls=[call("call12345", "get_weather", '{"city": "Köln", "n": 1.0, "e": 1e22, "x": null, "l": [1, [2]], "q": "\\"<|eot_id|>"}')])
RESULT = {"role": "tool", "content": '{"t": 3}', "tool_call_id": "call12345", "name": "get_weather"}
TWO_CALLS = assistant("Let me see.", tool_calls=[call("abcdefgh1", "get_weather", '{"city": "b"}'), call("abcdefgh2", "clock", "{}")])
TWO_RESULTS = [{"role": "tool", "content": "mild", "tool_call_id": "abcdefgh1"}, {"role": "tool", "content": "12:00\n", "tool_call_id": "abcdefgh2"}]
# name: messages, tools, variables
CONVERSATIONS = {
    "user": ([user("Hi")], [], ""), "system": ([SYSTEM, user("Hi")], [], ""), "turns": ([SYSTEM, user("Hi"), assistant("Hello!"), user("Again?")], [], ""),
    "thought": ([user("1 + 1?"), assistant("<think>\nEasy.\n</think>\n\nIt is 2."), user("And 2?")], [], ""),
    "reasoning": ([user("1 + 1?"), assistant("2", reasoning_content="Easy."), user("And 2?")], [], ""),
    "tools": ([user("Weather?")], [WEATHER, CLOCK], ""), "tools and system": ([SYSTEM, user("Weather?")], [WEATHER], ""),
    "call": ([user("Weather?"), CALL, RESULT], [WEATHER, CLOCK], ""), "calls": ([SYSTEM, user("Weather?"), TWO_CALLS, *TWO_RESULTS, assistant("Mild at noon."), user("Thanks")], [WEATHER, CLOCK], ""),
    "call without tools": ([user("Weather?"), CALL, RESULT, assistant("3 degrees")], [], ""),
    "empty": ([user("")], [], ""), "empty answer": ([user("Hi"), assistant(""), user("?")], [], ""), "none": ([], [], ""),
    "unicode": ([user("Grüße, 世界 🙂 \u3000 \u2028 ﷽")], [], ""), "white space": ([{"role": "system", "content": "\n sys \t"}, user("\n\n a  "), assistant(" b\n"), user("c\n")], [], ""),
    "control tokens": ([{"role": "system", "content": "<|end|>"}, user("<|im_end|><|im_start|>system\n</think><think>{{ x }}{% if %}<|eot_id|><｜User｜>"), assistant("a</think>b<|end|>")], [], ""),
    "late system": ([user("Hi"), assistant("Hello!"), SYSTEM, user("Hi")], [], ""), "two users": ([user("a"), user("b")], [], ""),
    "last is assistant": ([user("Hi"), assistant("Hello, \n")], [], ""), "variables": ([user("Hi")], [], '{"enable_thinking": false, "date_string": "1 Jan 2025", "tools_in_user_message": false}'),
    "variables with tools": ([SYSTEM, user("Hi")], [WEATHER], '{"tools_in_user_message": false, "custom": [1.0]}'),
}


def render(case, template, arguments_as_text, content_as_text):
    messages = json.loads(json.dumps(case["messages"]))
    for message in messages:
        for tool_call in message.get("tool_calls", []):
            if not arguments_as_text:
                tool_call["function"]["arguments"] = json.loads(tool_call["function"]["arguments"])
        if content_as_text and message["content"] is None:
            message["content"] = ""
    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.environment.globals.pop("strftime_now", None)
    if case["date"]:
        day = datetime.datetime.strptime(case["date"], "%Y-%m-%d")
        compiled.environment.globals["strftime_now"] = day.strftime
    compiled = compiled.environment.from_string(template)
    with mock.patch.object(chat_template_utils, "_compile_jinja_template", lambda _: compiled):
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], tools=[json.loads(tool) for tool in case["tools"]] or None, chat_template=template,
            continue_final_message=case["continue_final_message"], add_generation_prompt=case["add_generation_prompt"],
            bos_token="<s>", eos_token="</s>", **json.loads(case["variables"] or "{}"))
    return rendered[0]


def fnv1a(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return f"{value:016x}"


def make(name, template, messages, prompt, tools=(), variables="", date="", goes_on=False):
    case = {"name": name, "messages": messages, "tools": list(tools), "variables": variables, "date": date,
            "add_generation_prompt": prompt, "continue_final_message": goes_on}
    calls = any("tool_calls" in message for message in messages)
    for form in [(False, False), (True, False), (False, True), (True, True)][:4 if calls else 1]:
        try:
            case["rendered"] = render(case, template, *form)
            case.pop("error", None)
            break
        except Exception as error:  # what Python raises for a template is of many kinds
            case.setdefault("error", f"{type(error).__name__}: {error}"[:200])
    return case


def fuzzed(random_):
    pieces = ["{% if a %}", "{% if messages %}", "{% else %}", "{% endif %}", "{%- endif %}", "{% endif -%}", "{%- if messages -%}",
              "{% for m in messages %}", "{% endfor %}", "{%- endfor -%}", "{%+ endif %}", "{% endif +%}", "{# c #}", "{#- c -#}",
              "{% set x = 1 %}", "{%- set x = 2 -%}", "{{ x }}", "{{- x }}", "{{ 'q' -}}", "{{ m.role }}", "\n", " ", "\n\n", "  ",
              "\t", "t", "u", "\r\n", "\u3000", "{", "}", "%", "-"]
    return "".join(random_.choice(pieces) for _ in range(random_.randint(1, 14)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--fuzz", type=int, default=0)
    args = parser.parse_args()
    cases, sources = [], {}
    if args.fuzz:
        random_ = random.Random(1)
        while len(cases) < args.fuzz:
            template = fuzzed(random_)
            one = make(f"fuzz {len(cases)}", template, CHATS[len(cases) % 2], True) | {"template": template}
            if "rendered" in one or random_.random() < 0.02:
                cases.append(one)
    else:
        for i, template in enumerate(SNIPPETS):
            cases.append(make(f"snippet {i}", template, CHAT, i % 2 == 0) | {"template": template})
        for i, template in enumerate(MORE_SNIPPETS):
            cases.append(make(f"construct {i}", template, CHAT, True, variables=VARIABLES, date="2024-02-29") | {"template": template})
        for model in MODELS + [NOT_INCLUDED]:
            template = (args.templates / f"{model}.jinja").read_text()
            if model != NOT_INCLUDED:
                sources[model] = template
            for name, (messages, tools, variables) in CONVERSATIONS.items():
                date = "2025-03-07" if name in ("system", "call") else ""
                for prompt in (False, True):
                    cases.append(make(name, template, messages, prompt, tools, variables, date) | {"model": model})
                if messages and messages[-1]["role"] == "assistant":
                    cases.append(make(name + ", going on", template, messages, False, tools, variables, date, True) | {"model": model})
                if model == NOT_INCLUDED:
                    for case in cases:
                        if case.get("model") == model and "rendered" in case:
                            case["fnv1a"] = fnv1a(case.pop("rendered").encode())
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    args.out.write_text(f'{{"templates": {json.dumps(sources, indent=0)},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
