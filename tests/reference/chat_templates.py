"""What the target families' chat templates say, restated: without tools, and with the assistant's words marked, so that
transformers can tell which tokens those are. The sample model's own template is the sample model's."""

QWEN_25 = """
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN_3 = """
{%- set place = namespace(last_query=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set is_result = message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>') %}
    {%- if not place.found and message.role == 'user' and not is_result %}
        {%- set place.found = true %}
        {%- set place.last_query = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > place.last_query and (loop.last or reasoning) %}
            {%- set content = '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') %}
        {%- endif %}
        {%- generation %}{{- content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

LLAMA_3 = """
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{%- set system = '' %}
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content|trim %}
    {%- set turns = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in turns %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content|trim + '<|eot_id|>' }}{% endgeneration %}
    {%- else %}{{- message.content|trim + '<|eot_id|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

R1 = """
{%- set place = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{%- set place.system = message.content %}{%- endif %}
{%- endfor %}
{{- bos_token + place.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}{%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<｜Assistant｜>' }}
        {%- generation %}{{- message.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}"""
R1_RAW = R1.replace("message.content.split('</think>')[-1]", "message.content")

# Of no family: one that says nothing about whose words are whose, and refuses a conversation that begins with a system turn.
INST = """
{%- if messages[0].role == 'system' %}{{- raise_exception('no system turns here') }}{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}"""

# Template, the tokenizer it goes with, the built-in that stands in for it.
FAMILIES = {
    "qwen2.5": (QWEN_25, "qwen2.5", "chatml"),
    "qwen3": (QWEN_3, "qwen3", "qwen3"),
    "llama3": (LLAMA_3, "llama3", "llama3"),
    "r1": (R1, "r1-distill-qwen", "r1-raw"),
}
