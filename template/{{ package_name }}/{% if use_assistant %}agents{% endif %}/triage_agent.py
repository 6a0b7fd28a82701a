"""Decides who answers a message: the knowledge base or a human."""

from collections.abc import Mapping
from typing import Any

from .base import AgentConfig, AgentResponse, content_of
from .model_classifier import ModelClassifier
from .triage_rules import QUESTION, TriageRules, default_triage_rules


class TriageAgent:
    """Rules first. Where they see an ordinary question, a model may see more.

    A model can hand a message to a human, it can't keep one from a human: a complaint that the
    rules recognise stays one whatever a text talks the model into.
    """

    def __init__(
        self,
        config: AgentConfig,
        rules: TriageRules | None = None,
        model: ModelClassifier | None = None,
    ) -> None:
        self.config = config
        self.rules = rules or default_triage_rules()
        self.model = model

    async def process(
        self, payload: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> AgentResponse:
        """Classify `payload["content"]`.

        Returns:
            As content the intent: `"question"` or one of `triage_rules.toml`. As metadata
            `hand_off`, `product_type` (or None) and `decided_by` (`"rules"` or `"model"`).

        Raises:
            ValueError: the payload has no text, or one that is too long.
        """
        content = content_of(payload, self.config)
        intent, decided_by = self.rules.intent_of(content), "rules"
        if intent == QUESTION and self.model is not None:
            meanings = {rule.id: rule.meaning for rule in self.rules.intents}
            meanings[QUESTION] = "anything else"
            if (guess := await self.model.classify(content, meanings)) is not None:
                intent, decided_by = guess, "model"
        return AgentResponse(
            content=intent,
            metadata={
                "hand_off": intent != QUESTION,
                "product_type": self.rules.product_of(content),
                "decided_by": decided_by,
            },
        )
