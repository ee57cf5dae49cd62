#!/usr/bin/env python3
"""Writes chat_template_cases.json: what Jinja itself renders, set up as Hugging Face transformers sets it up.

    pip install jinja2
    python make_chat_template_cases.py --templates DIR --out chat_template_cases.json

DIR holds chat templates of published models as NAME.jinja; those named in MODELS are used (Qwen2.5: Apache-2.0,
DeepSeek-R1, Phi-4: MIT). A case is {name, template, messages, add_generation_prompt, and rendered or error}; bos_token
and eos_token are <s> and </s>. There is no strftime_now, as in our engine.

--fuzz N writes N random templates instead, for a longer comparison by hand.
"""

import argparse
import json
import pathlib
import random

import jinja2
from jinja2 import sandbox

MODELS = ["Qwen-Qwen2.5-7B-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.orig", "phi-4", "phi-4-mini-instruct",
          "phi-4-mini-reasoning", "phi-4-reasoning"]

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


def render(template, messages, prompt):
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                        extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda x, ensure_ascii=False, indent=None: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(messages=messages, tools=None, documents=None,
                                                    add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")


def case(name, template, messages, prompt):
    result = {"name": name, "template": template, "messages": messages, "add_generation_prompt": prompt}
    try:
        result["rendered"] = render(template, messages, prompt)
    except Exception as error:  # what Python raises for a template is of many kinds
        result["error"] = f"{type(error).__name__}: {error}"
    return result


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
    cases = []
    if args.fuzz:
        random_ = random.Random(1)
        while len(cases) < args.fuzz:
            one = case(f"fuzz {len(cases)}", fuzzed(random_), CHATS[len(cases) % 2], True)
            if "rendered" in one or random_.random() < 0.02:
                cases.append(one)
    else:
        for i, template in enumerate(SNIPPETS):
            cases.append(case(f"snippet {i}", template, CHAT, i % 2 == 0))
        for model in MODELS:
            template = (args.templates / f"{model}.jinja").read_text()
            for i, messages in enumerate(CHATS):
                cases += [case(f"{model} {i}", template, messages, prompt) for prompt in (False, True)]
    args.out.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
