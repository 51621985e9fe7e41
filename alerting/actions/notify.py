"""The action `notify`: a line in the log, always, and a webhook where one is set."""

import logging

from alerting.actions.action import Action, Done, Result
from alerting.actions.webhook import Webhook

_log = logging.getLogger(__name__)


class Notifier:
    """Tells people of an alert."""

    def __init__(self, webhook: Webhook | None) -> None:
        self._webhook = webhook

    def carry_out(self, action: Action) -> Result:
        """Write the line at the first attempt, and call the webhook at each."""
        if action.attempt == 1:
            _log.info(
                "Notice for alert ID=%d: [%s] %s on %s %s: %s",
                action.alert_id,
                action.details.get("severity"),
                action.alert_type,
                action.where,
                action.transition,
                action.details.get("message"),
            )
        if self._webhook is None:
            return Done("succeeded", details={"log": True})
        result = self._webhook.send(action)
        result.details["log"] = True
        return result
