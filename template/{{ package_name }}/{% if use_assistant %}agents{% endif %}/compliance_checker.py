"""Checks what the bank is about to say to a customer. Deterministic, no network, no database."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .base import AgentConfig, AgentResponse, content_of
from .compliance_rules import Disclaimer, Rules, default_rules, product_name
from .negation import is_negated, is_quotation
from .text_matching import FoldedText, fold


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a text breaks a rule. `start` and `end` are positions in that text."""

    rule: str
    phrase: str
    text: str
    start: int
    end: int
    source: str
    why: str

    def __str__(self) -> str:
        return (
            f'"{self.phrase}" {self.why}: "{self.text}" at characters {self.start} to {self.end} '
            f"({self.source})"
        )


class ComplianceCheckerAgent:
    """Finds prohibited promises and adds the disclaimers that a product needs.

    What counts as either, and which rule of the regulator says so, is in `compliance_rules.toml`.
    """

    def __init__(self, config: AgentConfig, rules: Rules | None = None) -> None:
        self.config = config
        self.rules = rules or default_rules()

    async def process(
        self, payload: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> AgentResponse:
        """Check `payload["content"]`.

        `context` may hold `product_type`, and `customer_message`: the message that is answered,
        whose signs of debt trouble count too.

        Returns:
            As content a text that may be sent: the one given or, if it breaks a rule, the
            fall-back reply; with the disclaimers that it lacks. As metadata `is_compliant`,
            `issues` (one sentence each), `findings` (the same as data), `required_disclaimers`
            (texts), `disclaimers` (id and source), `unknown_product` (a product type without
            rules, or None).

        Raises:
            ValueError: the payload has no text, or one that is too long.
        """
        content = content_of(payload, self.config)
        context = context or {}
        product = product_name(str(context.get("product_type") or "")) or None
        folded = fold(content)
        findings = self._findings(folded)
        asked = fold(str(context.get("customer_message") or ""))
        disclaimers = [d for d in self.rules.disclaimers if d.applies(product, [folded, asked])]
        return AgentResponse(
            content=_with_disclaimers(
                self.rules.fallback_reply if findings else content, disclaimers
            ),
            metadata={
                "is_compliant": not findings,
                "issues": [str(finding) for finding in findings],
                "findings": [asdict(finding) for finding in findings],
                "required_disclaimers": [disclaimer.text for disclaimer in disclaimers],
                "disclaimers": [{"rule": d.id, "source": d.source} for d in disclaimers],
                "unknown_product": None if product in self.rules.products else product,
            },
        )

    def _findings(self, folded: FoldedText) -> list[Finding]:
        findings = []
        for rule in self.rules.prohibitions:
            for span in rule.find(folded):
                if is_negated(folded.text, span) or is_quotation(folded.text, span):
                    continue
                place = folded.span_in_original(span)
                text = folded.original[place.start : place.end]
                findings.append(
                    Finding(
                        rule=rule.id,
                        phrase=rule.phrase,
                        text=text,
                        start=place.start,
                        end=place.end,
                        source=rule.source,
                        why=rule.why,
                    )
                )
        return sorted(findings, key=lambda finding: (finding.start, finding.end))


def _with_disclaimers(content: str, disclaimers: list[Disclaimer]) -> str:
    present = fold(content).text
    missing = [d.text for d in disclaimers if fold(d.text).text not in present]
    return "\n\n".join([content, *missing])
