from tests.stages.conftest import context as context
from tests.stages.conftest import tokenizer as tokenizer
