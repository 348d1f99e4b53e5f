"""Renders conversations by a model's own chat template, as transformers does. Started by data/jinja_process.cpp.

One JSON object a line on stdin. First {"template", "date_string", "variables"}, answered by {} or {"error"}; then
{"messages", "add_generation_prompt"}, each answered by {"text", "spans"} or {"error"}. Spans are character positions of
what the assistant wrote: the bodies of {% generation %} blocks where the template has them, else what an assistant's
turn adds to the text that asks for it; null where neither can be told.
"""

import datetime
import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: its body, with its place kept."""

    tags = {"generation"}

    def __init__(self, environment):
        super().__init__(environment)
        environment.globals["mark_begin"], environment.globals["mark_end"] = MARKS

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = [jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)], lineno=line) for mark in MARKS]
        return [marks[0], *body, marks[1]]


MARKS = "\ufdd0", "\ufdd1"  # noncharacters: no text holds them


def read(request):
    return request["messages"], {"add_generation_prompt": request["add_generation_prompt"]}


class Renderer:
    def __init__(self, setup):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
        date = setup["date_string"]
        environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: (
            json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys))
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: as_date(date, form)
        self.template = environment.from_string(setup["template"])
        self.variables = setup["variables"] | {"date_string": date, "tools": None, "documents": None}

    def marked(self, messages, add_generation_prompt):
        return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self.variables)

    def render(self, messages, add_generation_prompt):
        text = self.marked(messages, add_generation_prompt)
        if MARKS[0] in text:
            return without_marks(text)
        return text, self.spans_by_prefix(messages, text)

    def spans_by_prefix(self, messages, text):
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.marked(messages[:i], True)
            after = self.marked(messages[: i + 1], False)
            if not (text.startswith(after) and after.startswith(before)):
                return None
            # The line break after a turn's last mark is the template's.
            spans.append((len(before), len(after.rstrip("\n")) if after.endswith(">\n") else len(after)))
        return spans


def without_marks(text):
    plain, spans, length = [], [], 0
    for i, part in enumerate(text.split(MARKS[0])):
        inside, _, rest = part.partition(MARKS[1]) if i else ("", "", part)
        if i:
            spans.append((length, length + len(inside)))
        plain += [inside, rest]
        length += len(inside) + len(rest)
    return "".join(plain), spans


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def as_date(date, form):
    try:
        return datetime.datetime.strptime(date, "%d %b %Y").strftime(form)
    except ValueError:
        return date


def main():
    renderer = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if renderer is None:
                renderer, answer = Renderer(request), {}
            else:
                text, spans = renderer.render(request["messages"], request["add_generation_prompt"])
                answer = {"text": text, "spans": spans}
        except (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            place = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""
            answer = {"error": f"{place}{error}"}
        print(json.dumps(answer), flush=True)


main()
