from backends.openai import OpenAI
class TGI(OpenAI): pass
