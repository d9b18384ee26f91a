"""What a card revision says never changes, and its review is given once."""

from django.db import migrations

REFUSE = """
CREATE FUNCTION registry_refuse_card_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE'
        AND to_jsonb(NEW) - '{state,reviewer_id,reviewer_name,review_comment,reviewed_at}'::text[]
            = to_jsonb(OLD) - '{state,reviewer_id,reviewer_name,review_comment,reviewed_at}'::text[]
        AND ((OLD.state = 'DRAFT' AND NEW.state = 'IN_REVIEW')
            OR (OLD.state = 'IN_REVIEW' AND NEW.state IN ('REVIEWED', 'CHANGES_REQUESTED')))
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'A card revision is immutable: % is refused.', TG_OP USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER registry_refuse_card_change BEFORE UPDATE OR DELETE ON registry_cardrevision
FOR EACH ROW EXECUTE FUNCTION registry_refuse_card_change();
"""

UNDO = """
DROP TRIGGER registry_refuse_card_change ON registry_cardrevision;
DROP FUNCTION registry_refuse_card_change();
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0003_packs_model_cards")]

    operations = [migrations.RunSQL(REFUSE, UNDO)]
