"""A decided version never changes: only its state may move on from READY to ARCHIVED, and its job may be forgotten."""

from django.db import migrations

REFUSE = """
CREATE FUNCTION registry_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_open boolean := OLD.state = 'VALIDATING';
BEGIN
    IF TG_OP = 'UPDATE'
        AND (NEW.model_id, NEW.number, NEW.artifact_id, NEW.file_name, NEW.notes, NEW.uploaded_by_id, NEW.uploaded_at)
            IS NOT DISTINCT FROM
            (OLD.model_id, OLD.number, OLD.artifact_id, OLD.file_name, OLD.notes, OLD.uploaded_by_id, OLD.uploaded_at)
        AND (is_open OR to_jsonb(NEW) - '{state,job_id}'::text[] = to_jsonb(OLD) - '{state,job_id}'::text[])
        AND (is_open OR NEW.state = OLD.state OR (OLD.state = 'READY' AND NEW.state = 'ARCHIVED'))
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'A model version is immutable: % is refused.', TG_OP USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER registry_refuse_change BEFORE UPDATE OR DELETE ON registry_modelversion
FOR EACH ROW EXECUTE FUNCTION registry_refuse_change();
"""

UNDO = """
DROP TRIGGER registry_refuse_change ON registry_modelversion;
DROP FUNCTION registry_refuse_change();
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0001_initial")]

    operations = [migrations.RunSQL(REFUSE, UNDO)]
