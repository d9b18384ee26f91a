"""Let retention, and nothing else, empty the body of an event that keeps its number, time, link and hash."""

from django.db import migrations

REFUSE = """
CREATE OR REPLACE FUNCTION audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The numbering of a new event, from within its trigger.
    IF TG_OP = 'UPDATE' AND pg_trigger_depth() > 1 AND OLD.seq IS NULL AND NEW.body = OLD.body THEN
        RETURN NEW;
    END IF;
    -- Retention, which announces itself: the body goes, everything that is hashed around it stays.
    IF TG_OP = 'UPDATE' AND current_setting('countersign.retention', true) = 'on' AND NEW.body = '{}'
        AND (NEW.id, NEW.seq, NEW.at, NEW.previous_hash, NEW.leaf_hash)
            = (OLD.id, OLD.seq, OLD.at, OLD.previous_hash, OLD.leaf_hash) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'The audit log is append-only: % is refused.', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0003_audit_checkpoints")]

    operations = [migrations.RunSQL(REFUSE, migrations.RunSQL.noop)]
