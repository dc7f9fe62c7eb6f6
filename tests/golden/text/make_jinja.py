"""jinja.json: templates and variables, and what transformers' Jinja environment makes of them.

Run: python make_jinja.py (transformers 5.23, jinja2 3.1.6)
"""
import datetime
import json
from pathlib import Path

import transformers.utils.chat_template_utils as chat

NOW = 1_700_000_000  # of strftime_now, in UTC

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is 2+2? "},
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2.5, "deep": {"x": [1, None, True]}}}}]},
    {"role": "tool", "content": "{\"sum\": 4}"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\nIt is 4."},
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds \"numbers\" <b> & 'more' \u00e9",
          "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "number"}}, "required": ["a", "b"]}}}]
BASE = {
    "messages": MESSAGES, "tools": TOOLS, "empty": [], "none": None, "yes": True, "no": False, "n": 7, "neg": -7, "f": 2.5,
    "s": "Hello World", "u": "h\u00e9llo w\u00f6rld \U0001f600", "multi": "one\n  two\n\nthree\n", "d": {"b": 1, "a": "x", "C": None},
    "nums": [3, 1, 2, 3], "words": ["pear", "Apple", "fig", "apple"], "quotes": "it's \"quoted\"\t\\ \x01 \x7f",
    "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25}, {"name": "Cy", "age": 30, "on": True}],
}

# Rendered with BASE. Grouped by what they exercise.
TEMPLATES = [
    # white space
    "a\n{% if yes %}\n  b\n{% endif %}\nc\n", "  {% if yes %}x{% endif %}  \n", "x {%- if yes -%}  y  {%- endif -%} z",
    "a\n    {%- for i in nums %}\n {{ i }}\n    {%- endfor %}\n", "{% if yes +%}\n x\n{% endif %}", "   {%+ if yes %}x{% endif %}",
    "a {# comment #} b\n{# line #}\nc", "{#- x -#}  y", "  {# indented #}\nz", "{{ s }}\n", "{{ s }}\n\n", "\n\n{{ s }}", "a\r\nb\r{{ n }}\r\n",
    "{% raw %}{{ no }} {% x %}{% endraw %}!", "a {%- raw -%}  {{ x }}  {%- endraw -%} b", "{{- s -}}   x", "\t{% set x = 1 %}\n{{ x }}",
    "{{ '{{' }} {{ '%}' }} { { } } {x} {{ {'a': {'b': 1}}['a']['b'] }}", "{% for i in nums -%}\n{{ i }}\n{%- endfor %}", "",
    "  \n  {{- n }}  \n", "{% if yes %}\n\n{% endif %}", "x{% if no %}{% endif %}\n\ny", "{% set a %}\n  hi\n{% endset %}[{{ a }}]",
    # literals and operators
    "{{ 1 + 2 * 3 - 4 // 3 % 2 }} {{ 7 / 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }}",
    "{{ 1.0 }} {{ 1e16 }} {{ 1.5e-5 }} {{ 123456789.125 }} {{ 0.1 + 0.2 }} {{ 1e3 }} {{ 7 / 7 }} {{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ [1, 'x'] }}", "{{ 'ab' * 3 }}{{ [1] * 2 }}{{ 2 * 'x' }}", "{{ [1, 2] + [3] }} {{ (1, 2) + (3,) }} {{ () }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ none == none }}",
    "{{ 2 in nums }} {{ 'ell' in s }} {{ 'b' in d }} {{ 9 not in nums }} {{ not 2 in nums }} {{ 'x' in missing }}",
    "{{ yes and no }} {{ yes and 'x' }} {{ no or 'y' }} {{ none or 0 or '' }}| {{ not none }}", "{{ 'a' if yes else 'b' }} {{ 'a' if no }}|",
    "{{ 'x' if no else 'y' if no else 'z' }}", "{{ \"dq\" 'sq' }} {{ 'esc \\n \\t \\' \\\\ \\u00e9 \\x41 \\101 \\d' }}", "{{ [1, 2.0, 'x', none, true, {'k': (1,)}] }}",
    "{{ {'a': 1, 'b': [1, 2], 3: 'c'} }} {{ quotes }} {{ [quotes, u] }}", "{{ -n }} {{ +n }} {{ - n + 3 }} {{ n - -1 }}", "{{ 'n=%d s=%s %% %.2f %r' % (n, s, f, s) }} {{ '%s' % s }}",
    "{{ (1, 2)[0] }} {{ nums[-1] }} {{ nums.0 }} {{ s[0] }} {{ u[-1] }} {{ nums[10] }}|{{ d['b'] }} {{ d.a }} {{ d['zz'] }}|{{ d.zz }}|",
    "{{ nums[1:] }} {{ nums[:-1] }} {{ nums[::-1] }} {{ nums[1:3] }} {{ nums[::2] }} {{ s[1:4] }} {{ s[::-1] }} {{ u[-3:] }} {{ nums[5:] }} {{ nums[-100:2] }} {{ nums[3:0:-2] }}",
    "{{ messages[1:] | length }} {{ messages[-1].role }} {{ messages[0]['content'] }}", "{{ none }} {{ None }} {{ True }} {{ False }} {{ missing }}|",
    # statements
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ' first' if loop.first }}{{ ' last' if loop.last }} {{ loop.revindex }} {{ loop.revindex0 }};{% endfor %}",
    "{% for x in nums if x > 1 %}{{ loop.index0 }}:{{ x }} {% else %}none{% endfor %}", "{% for x in empty %}x{% else %}none{% endfor %}", "{% for x in missing %}x{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %} {% for c in 'a\u00e9' %}[{{ c }}]{% endfor %}", "{% for k, v in d|items %}{{ k }}{% endfor %}",
    "{% for x in nums %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {{ loop.cycle('a', 'b') }} {{ loop.changed(x) }} {% endfor %}",
    "{% for a in [1, 2] %}{% for b in [3, 4] %}{{ loop.index }}{{ loop.depth }}{{ a }}{{ b }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in nums %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set x = 1 %}{% for i in nums %}{% set x = i %}{% endfor %}{{ x }} {% if yes %}{% set x = 9 %}{% endif %}{{ x }}",
    "{% set ns = namespace(a=1, b='x') %}{% for i in nums %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.zz }}|", "{% set ns = namespace() %}{% set ns.found = true %}{{ ns.found }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set t = 1, 2 %}{{ t }} {% set (p, q) = [3, 4] %}{{ p }}{{ q }}", "{% set x %}a{{ n }}{% endset %}{{ x }}{{ x | length }} {% set y | upper %}abc{% endset %}{{ y }}",
    "{% macro m(a, b=2, c='z') %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, c='q') }} {{ m(a=5, b=6) }} {{ m() }}|{{ m(*[1, 2]) }} {{ m(**{'a': 8}) }}",
    "{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * (fact(n - 1) | int) }}{% endif %}{% endmacro %}{{ fact(10) }}",
    "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}in{{ n }}{% endcall %} {% macro each(l) %}{% for x in l %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(x) each(nums) %}[{{ x }}]{% endcall %}",
    "{% filter upper | replace('L', 'l') %}hello {{ s }}{% endfilter %}", "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}|", "{% generation %}x{{ n }}{% endgeneration %}\ny",
    "{% if no %}a{% elif n > 5 %}b{% else %}c{% endif %}{% if no %}a{% elif no %}b{% else %}c{% endif %}", "{% set x = 5 %}{% macro show() %}{{ x }}{{ n }}{% endmacro %}{{ show() }}",
    "{% for i in range(3) %}{{ i }}{% endfor %} {{ range(2, 10, 3) | list }} {{ range(5, 0, -2) | list }}", "{% for x in (1, 2), (3, 4) %}{{ x[0] }}{% endfor %}", "{% print n %}{{ n, s }}",
    # tests
    "{{ n is defined }} {{ missing is defined }} {{ missing is not defined }} {{ none is none }} {{ s is string }} {{ d is mapping }} {{ nums is iterable }} {{ nums is sequence }} {{ s is sequence }} {{ n is iterable }} {{ d is iterable }} {{ missing is iterable }}",
    "{{ n is number }} {{ f is float }} {{ n is integer }} {{ yes is boolean }} {{ yes is number }} {{ yes is integer }} {{ yes is true }} {{ no is false }} {{ 1 is true }} {{ n is odd }} {{ n is even }} {{ 9 is divisibleby 3 }} {{ n is divisibleby(7) }}",
    "{{ n is in nums }} {{ 3 is in nums }} {{ n is eq 7 }} {{ n is equalto(8) }} {{ n is ne 7 }} {{ n is gt 3 }} {{ n is lt(3) }} {{ n is ge 7 }} {{ n is le 7 }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ none is sameas none }} {{ range is callable }}",
    "{{ messages[0].tool_calls is defined }} {{ messages[2].tool_calls is defined and messages[2].tool_calls is not none }} {{ 'x' if missing is not none and n is not string else 'y' }}",
    # filters
    "{{ '  x '|trim }}|{{ 'xxaxx'|trim('x') }}|{{ s|upper }}|{{ s|lower }}|{{ 'hELLO wORLD-foo (bar) it\\'s'|title }}|{{ 'hELLO'|capitalize }}|{{ u|upper }}|{{ u|length }}",
    "{{ nums|join(', ') }} {{ people|join('+', attribute='name') }} {{ []|join }}| {{ 'abc'|join('-') }}", "{{ nums|first }} {{ nums|last }} {{ empty|first }}| {{ s|first }} {{ nums|length }} {{ d|length }} {{ d|count }}",
    "{{ missing|default('dflt') }} {{ ''|default('e', true) }} {{ ''|default('e') }}| {{ none|default('x') }} {{ none|d('x', boolean=true) }} {{ missing|default }}|",
    "{{ s|replace('o', '0') }} {{ s|replace('l', 'L', 1) }} {{ s|list }} {{ d|list }} {{ s|string }} {{ n|string ~ 'x' }} {{ s|reverse }} {{ nums|reverse|list }}",
    "{{ '12'|int }} {{ '12.7'|int }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ 3.9|int }} {{ '2.5'|float }} {{ 'z'|float }} {{ neg|abs }} {{ 2.567|round(2) }} {{ 2.5|round }} {{ 2.1|round(0, 'ceil') }} {{ 2.9|round(method='floor') }} {{ '1f'|int(base=16) }}",
    "{{ nums|sort }} {{ words|sort }} {{ nums|sort(reverse=true) }} {{ people|sort(attribute='age')|map(attribute='name')|list }} {{ words|sort(case_sensitive=true) }} {{ nums|unique|list }} {{ words|unique|list }}",
    "{{ d|dictsort }} {{ d.items()|list }} {{ d.keys()|list }} {{ d.values()|list }} {{ {'b': 2, 'a': 3}|dictsort(false, 'value') }} {{ {'b': 2, 'a': 3}|dictsort(reverse=true) }}",
    "{{ people|map(attribute='name')|list }} {{ words|map('upper')|list }} {{ people|map(attribute='on', default='-')|list }} {{ nums|map('string')|join }}", "{{ people[:1]|map(attribute='tags.0')|list }}", "{{ people|map(attribute='tags.0')|list }}",
    "{{ nums|select('gt', 1)|list }} {{ nums|select('odd')|list }} {{ nums|reject('equalto', 3)|list }} {{ [0, 1, '', 'a']|select|list }} {{ people|selectattr('on')|map(attribute='name')|list }} {{ people|selectattr('age', 'equalto', 30)|map(attribute='name')|list }} {{ people|rejectattr('age', 'eq', 30)|map(attribute='name')|list }} {{ people|selectattr('tags', 'defined')|list|length }}",
    "{{ multi|indent }}|{{ multi|indent(2, true) }}|{{ multi|indent(2, blank=true) }}|{{ multi|indent('> ') }}", "{{ nums|sum }} {{ nums|min }} {{ nums|max }} {{ people|sum(attribute='age') }} {{ nums|batch(3)|list }} {{ nums|batch(3, 0)|list }}",
    "{{ '<a href=\"x\">&\\'</a>'|escape }} {{ '<b>'|safe }} {{ '<b>'|e }} {{ '%s-%d'|format('a', 3) }} {{ d|attr('zz') }}|", "{{ people|groupby('age') }}", "{% for age, group in people|groupby('age') %}{{ age }}:{{ group|map(attribute='name')|join(',') }} {% endfor %}",
    "{{ tools|tojson }}", "{{ tools[0]|tojson(indent=2) }}", "{{ d|tojson(indent=4) }} {{ []|tojson(indent=2) }} {{ {}|tojson(indent=2) }} {{ [[], {}]|tojson(indent=2) }}", "{{ quotes|tojson }} {{ u|tojson }} {{ u|tojson(ensure_ascii=true) }} {{ [1, 1.0, none, true, 1e100]|tojson }}",
    "{{ d|tojson(sort_keys=true) }}" , "{{ {'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true) }}", "{{ d|tojson(separators=(' , a separator of many bytes, ', ' : and so is this one ')) }}", "{{ d|tojson(indent=1, separators=('; ', '=')) }}", "{{ d|tojson(separators=(',', ':')) }} {{ {1: 2, none: 3, true: 4, 2.5: 5}|tojson }}", "{{ (1, 2)|tojson }} {{ messages[2]|tojson }}", "{{ 'x' | upper | lower ~ 'Y' | lower }}",
    # methods
    "{{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'a\\n'.rstrip('\\n') }}|{{ 'abc'.lstrip('ba') }}", "{{ 'a,b,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b c '.split(none, 1) }} {{ ' a b c '.rsplit(none, 1) }} {{ ''.split(',') }} {{ ''.split() }}",
    "{{ messages[4].content.split('</think>')[-1].lstrip('\\n') }} {{ '</think>' in messages[4].content }} {{ messages[4]['content'].split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}",
    "{{ s.startswith('He') }} {{ s.endswith(('x', 'ld')) }} {{ s.startswith('x') }} {{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ 'abc'.replace('', '-') }} {{ s.upper() }} {{ s.lower() }} {{ \"they're bill's\".title() }} {{ 'hELLO'.capitalize() }}",
    "{{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ u.find('w') }} {{ s.index('W') }} {{ s.count('l') }} {{ '-'.join(['a', 'b']) }} {{ 'a\\nb\\r\\nc'.splitlines() }} {{ 'a\\nb\\n'.splitlines(true) }}",
    "{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ ''.isdigit() }} {{ 'AB'.isupper() }} {{ 'ab1'.islower() }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'ab'.center(5) }}| {{ 'abc'.center(6, '*') }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3) }}",
    "{{ d.get('b') }} {{ d.get('zz') }} {{ d.get('zz', 'dd') }} {{ nums.index(2) }} {{ nums.count(3) }} {{ d.items()|list|length }}", "{{ dict(a=1, b=2) }} {{ dict({'x': 1}, y=2) }} {{ dict([('k', 'v')]) }}", "{{ strftime_now('%Y-%m-%d %H:%M %d %b %Y') }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|first|trim }}", "{{ (messages|last).content[:7] }} {{ messages[::-1][0].role }}", "{% for m in messages[::-1] %}{% set i = (messages|length - 1) - loop.index0 %}{{ i }}{{ m.role }} {% endfor %}",
    "{% for m in messages if m.role != 'system' %}{% if m.content is string %}{{ m.content|trim }}{% elif m.content is none %}(none){% endif %};{% endfor %}", "{%- for tc in messages[2].tool_calls -%}{%- set tc = tc.function -%}{{ tc.name }}({% for k, v in tc.arguments.items() %}{{ k }}={{ v if v is string else v | tojson }}{{ ', ' if not loop.last }}{% endfor %}){%- endfor -%}",
    "{{ '\u00df'.upper() }} {{ '\u01c6'.title() }} {{ '\u0130'.lower() | length }} {{ '\u00c9COLE'.lower() }} {{ '\u2028x'.strip() }}|{{ '\u001cx'.strip() }}|{{ '\u200bx'.strip() | length }}", "{{ '\u00e9' < 'z' }} {{ ['\u00e9', 'z', 'a'] | sort }}",
    "{{ [1, [2, [3, ['x']]]] }} {{ [u, '\\n\u00a0\u200b'] }}", "{{ messages[0].get('name', 'anon') }} {{ messages[0].items() | list }}", "{{ s.strip().split(' ')[1][0:2].lower() }}", "{% set x = namespace(l=[]) %}{% for i in nums %}{% set x.l = x.l + [i * 2] %}{% endfor %}{{ x.l }}",
    "{{ (none or {}).get('x', 'y') }} {{ [] or 'e' }} {{ 0 or none }} {{ d and d.b }}", "{{ n if n is defined and n else 'x' }}{{ (missing.foo is defined) if missing is defined else 'no' }}", "{{ missing.foo is defined if missing is defined else 'no' }}", "{{ 10 // 3 }}{{ 10.0 // 3 }}{{ -1.5 % 1 }} {{ 1 / 3 }} {{ 100000000000000000000.0 }} {{ 1e22 }} {{ 1.0e-4 }} {{ 123456.789e3 }}",
    # errors
    "{{ raise_exception('no ' ~ n) }}", "{{ missing.attr }}", "{{ d.zz.y }}", "{{ none.x.y }}", "{{ missing() }}", "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ missing + 1 }}", "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ s < 1 }}", "{{ d < d }}",
    "{% for x in 5 %}{% endfor %}", "{% for x in none %}{% endfor %}", "{% for a, b in nums %}{% endfor %}", "{{ 1 in s }}", "{{ 1 in none }}", "{{ nums.append(1) }}", "{{ d.update({}) }}", "{{ d.pop('b') }}", "{{ n() }}", "{{ missing[1] }}", "{{ none[1:] }}|", "{{ missing[1:] }}",
    "{% set s.x = 1 %}", "{{ nums|join(1, 2, 3) }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(zz=2) }}", "{{ 's'.split('') }}", "{{ none|length }}", "{{ n|list }}", "{{ range(1000000) }}", "{{ [1, 'a']|sort }}", "{{ missing|tojson }}", "{{ range|tojson }}", "{{ nums[::0] }}", "{{ '%d' % 's' }}", "{{ '%s' % (1, 2) }}", "{{ '%s %s' % 1 }}",
    # not templates
    "{{ x", "{% if %}{% endif %}", "{% if yes %}", "{% endif %}", "{{ 1 + }}", "{{ (1 }}", "{{ 'abc }}", "{% for x %}{% endfor %}", "{% unknown %}", "{{ a b }}", "{{ [1, 2 }}", "{# open", "{{ 1 is is 2 }}", "{% set 1 = 2 %}", "{% macro %}{% endmacro %}", "{{ }}", "{% break %}", "{% else %}", "{{ a..b }}", "{{ f(a=1, 2) }}", "{{ x | }}", "{{ $ }}", "{{ x is }}", "{% for true in nums %}{% endfor %}", "{{ n | nofilter }}", "{{ n is notest }}", "{% call n %}{% endcall %}",
]


class FixedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc)


def main():
    chat.datetime = FixedDatetime
    cases = []
    for template in TEMPLATES:
        case = {"template": template}
        try:
            case["text"] = chat._compile_jinja_template(template).render(**json.loads(json.dumps(BASE)))
        except Exception as error:
            case["error"] = type(error).__name__
            case["message"] = str(error)
        cases.append(case)
    lines = ",\n".join(json.dumps(c) for c in cases)
    (Path(__file__).parent / "jinja.json").write_text(f'{{"now": {NOW}, "variables": {json.dumps(BASE)},\n"cases": [\n{lines}\n]}}\n')
    print(len(cases), "cases,", sum("error" in c for c in cases), "errors")


if __name__ == "__main__":
    main()
