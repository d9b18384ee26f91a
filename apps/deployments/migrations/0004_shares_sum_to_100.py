"""At the end of every transaction one champion and its canaries share out 100 per cent, or nothing answers at all."""

from django.db import migrations

CHECK = """
CREATE FUNCTION deployments_check_split() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    total bigint;
    champions bigint;
BEGIN
    SELECT sum(weight), count(*) FILTER (WHERE role = 'champion') INTO total, champions
    FROM deployments_deployment
    WHERE endpoint_id = NEW.endpoint_id AND retired_at IS NULL AND role <> 'shadow';
    IF total <> 100 OR (total IS NOT NULL AND champions <> 1) THEN
        RAISE EXCEPTION 'What answers on endpoint % has % %% of its traffic and % champions.',
            NEW.endpoint_id, total, champions USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER deployments_check_split AFTER INSERT OR UPDATE ON deployments_deployment
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION deployments_check_split();
"""

UNDO = """
DROP TRIGGER deployments_check_split ON deployments_deployment;
DROP FUNCTION deployments_check_split();
"""


class Migration(migrations.Migration):
    dependencies = [("deployments", "0003_traffic_settings_and_guardrails")]

    operations = [migrations.RunSQL(CHECK, UNDO)]
