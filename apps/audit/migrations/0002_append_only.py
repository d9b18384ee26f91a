"""Number and link events as their transaction commits, and refuse every other change to them."""

from django.db import migrations

NUMBER = """
CREATE FUNCTION audit_number_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    head record;
    number bigint;
    moment timestamptz;
    link text;
BEGIN
    -- Runs at commit, after all of the transaction's row locks: whoever waits here waits for nothing else.
    PERFORM pg_advisory_xact_lock(7203114502);
    SELECT seq, leaf_hash INTO head FROM audit_auditevent WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1;
    number := coalesce(head.seq, 0) + 1;
    link := coalesce(head.leaf_hash, repeat('0', 64));
    moment := clock_timestamp();
    UPDATE audit_auditevent SET
        seq = number,
        at = moment,
        previous_hash = link,
        leaf_hash = encode(sha256('\\x00'::bytea || convert_to(
            number || E'\\n'
            || to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || E'\\n'
            || link || E'\\n'
            || NEW.body, 'UTF8')), 'hex')
    WHERE id = NEW.id;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER audit_number_event AFTER INSERT ON audit_auditevent
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_number_event();
"""

REFUSE = """
CREATE FUNCTION audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The one change that there is: the numbering of a new event, from within its trigger.
    IF TG_OP = 'UPDATE' AND pg_trigger_depth() > 1 AND OLD.seq IS NULL AND NEW.body = OLD.body THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'The audit log is append-only: % is refused.', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE FUNCTION audit_refuse_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.seq IS NOT NULL OR NEW.at IS NOT NULL OR NEW.previous_hash IS NOT NULL OR NEW.leaf_hash IS NOT NULL THEN
        RAISE EXCEPTION 'Events are numbered by the database.' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER audit_refuse_number BEFORE INSERT ON audit_auditevent
FOR EACH ROW EXECUTE FUNCTION audit_refuse_number();
CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON audit_auditevent
FOR EACH ROW EXECUTE FUNCTION audit_refuse_change();
CREATE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON audit_auditevent
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse_change();
"""

UNDO = """
DROP TRIGGER audit_refuse_truncate ON audit_auditevent;
DROP TRIGGER audit_refuse_change ON audit_auditevent;
DROP TRIGGER audit_refuse_number ON audit_auditevent;
DROP TRIGGER audit_number_event ON audit_auditevent;
DROP FUNCTION audit_refuse_number();
DROP FUNCTION audit_refuse_change();
DROP FUNCTION audit_number_event();
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]

    operations = [migrations.RunSQL(NUMBER + REFUSE, UNDO)]
