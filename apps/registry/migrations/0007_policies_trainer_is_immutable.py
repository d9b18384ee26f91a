"""Who trained a version, and on what, is said once: from the upload on it does not change."""

from django.db import migrations

FUNCTION = """
CREATE OR REPLACE FUNCTION registry_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_open boolean := OLD.state = 'VALIDATING';
BEGIN
    IF TG_OP = 'UPDATE'
        AND (NEW.model_id, NEW.number, NEW.artifact_id, NEW.file_name, NEW.notes, NEW.uploaded_by_id, NEW.uploaded_at{0})
            IS NOT DISTINCT FROM
            (OLD.model_id, OLD.number, OLD.artifact_id, OLD.file_name, OLD.notes, OLD.uploaded_by_id, OLD.uploaded_at{1})
        AND (is_open OR to_jsonb(NEW) - '{{state,job_id}}'::text[] = to_jsonb(OLD) - '{{state,job_id}}'::text[])
        AND (is_open OR NEW.state = OLD.state OR (OLD.state = 'READY' AND NEW.state = 'ARCHIVED'))
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'A model version is immutable: % is refused.', TG_OP USING ERRCODE = 'integrity_constraint_violation';
END $$;
"""
WITH_TRAINER = FUNCTION.format(
    ", NEW.trained_by_id, NEW.training_data", ", OLD.trained_by_id, OLD.training_data"
)
WITHOUT = FUNCTION.format("", "")


class Migration(migrations.Migration):
    dependencies = [("registry", "0006_policies_trainer_lineage_and_protection")]

    operations = [migrations.RunSQL(WITH_TRAINER, WITHOUT)]
